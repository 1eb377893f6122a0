"""ROUGE-L, accuracy and macro-F1, implemented here: a few lines instead of several packages."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence

WORDS = re.compile(r"\w+")


def rouge_l(text: str, references: Sequence[str]) -> float:
    """Score a text by the longest common subsequence of words that it shares with a reference.

    Words are lower-cased runs of letters and digits, not stemmed. For ASCII text, the score equals that of the
    `rouge_score` package with `use_stemmer=False`; as there, the best of several references counts.

    Args:
        text: The text.
        references: Correct answers, at least one.

    Returns:
        F1 of precision and recall, in [0, 1].

    Source:
        Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1, with beta = 1.
    """
    return max(_f1(_words(text), _words(reference)) for reference in references)


def _words(text: str) -> list[str]:
    return WORDS.findall(text.lower().replace("_", " "))


def _f1(words: list[str], reference: list[str]) -> float:
    shared = _common_subsequence(words, reference)
    return 2 * shared / (len(words) + len(reference)) if shared else 0.0


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence, computed one row of the table at a time."""
    before = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for index, other in enumerate(second):
            row.append(before[index] + 1 if word == other else max(before[index + 1], row[index]))
        before = row
    return before[-1]


def accuracy(predicted: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    """Return the share of correct predictions, in [0, 1]."""
    return sum(one == other for one, other in zip(predicted, right, strict=True)) / len(right)


def macro_f1(predicted: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    """Return the mean F1 of the classes, in [0, 1]; a class that is neither predicted nor correct does not count.

    For the classes that occur, it equals scikit-learn's `f1_score(average="macro", zero_division=0)`.
    """
    hits = Counter(one for one, other in zip(predicted, right, strict=True) if one == other)
    counts = Counter(predicted) + Counter(right)  # F1 is the hits over the mean of both
    return sum(2 * hits[label] / count for label, count in counts.items()) / len(counts)
