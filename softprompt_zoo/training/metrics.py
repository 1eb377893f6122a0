"""ROUGE-L, written out: twenty lines are less than the packages that a dependency on `rouge_score` brings."""

import re
from collections.abc import Sequence

WORDS = re.compile(r"\w+")


def rouge_l(text: str, references: Sequence[str]) -> float:
    """Score a text by the longest common subsequence of words that it shares with a reference.

    Words are runs of letters and digits in lower case, not stemmed. For ASCII text the score is that of the
    `rouge_score` package with `use_stemmer=False`; of several references the best counts, as there.

    Args:
        text: The text.
        references: Right answers, at least one.

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
    """Length of the longest common subsequence, one row of the table at a time."""
    before = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for index, other in enumerate(second):
            row.append(before[index] + 1 if word == other else max(before[index + 1], row[index]))
        before = row
    return before[-1]
