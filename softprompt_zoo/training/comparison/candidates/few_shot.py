"""In-context learning: training examples in front of every row."""

import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence

from softprompt_zoo.backbone.traits import max_positions
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted, Options
from softprompt_zoo.training.comparison.candidates.written import written
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.trial import Trial

BETWEEN = "\n\n"
"""Separates two examples, and the last example from the row. It is tokenized separately, as in methods that learn from
examples: within a text, many tokenizers split a blank line into two newlines."""


class FewShot:
    """Training examples in front of every row, as many as requested if they fit; a `Candidate`."""

    name = "few-shot"
    recipe: Recipe | None = None
    is_trained = False
    varies = True

    def variants(self, choices: Choices, bench: Bench) -> Sequence[Options]:
        """Return its only variant."""
        return [{"shots": choices.shots}]

    @contextlib.contextmanager
    def put_on(self, bench: Bench, trial: Trial) -> Iterator[Fitted]:
        """Put examples in front, sampled with the seed."""
        pieces = _pieces(drawn(bench, trial.options["shots"], trial.seed))
        yield written(bench, pieces, lambda objective: objective.with_examples(pieces))


def _pieces(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return the text in front of a row, in pieces that are tokenized separately."""
    return [piece for text, answer in pairs for piece in (text + answer, BETWEEN)]


def drawn(bench: Bench, count: int, seed: int) -> list[tuple[str, str]]:
    """Sample training examples, balanced over answers if answers recur.

    Args:
        bench: The model and the rows.
        count: Maximum number of examples; fewer if they do not all fit in front of the longest row.
        seed: Seed of the sample.

    Returns:
        Text and answer of each example, in random order.

    Raises:
        UnsupportedError: If none fits, or the model does not read answers as text.
    """
    if bench.tasks:
        raise UnsupportedError(
            f"the rows belong to {len(bench.tasks)} tasks, and it shows the same examples in front of every row, most "
            "of which would belong to another task; compare it on the rows of one task"
        )
    pairs = bench.pairs(_balanced(bench, seed)[:count])
    while pairs and not _fit(bench, pairs):
        pairs.pop()
    if not pairs:
        raise UnsupportedError("not one training example fits in front of the longest row; shorten the rows")
    return pairs


def _balanced(bench: Bench, seed: int) -> list[int]:
    """Return the indices of training rows in random order, cycling through the answers."""
    order = random.Random(seed).sample(range(len(bench.training.examples)), len(bench.training.examples))
    groups: dict[str, list[int]] = {}
    for place in order:
        groups.setdefault(bench.objective.shown(bench.training.examples[place])[1], []).append(place)
    turns = itertools.zip_longest(*groups.values())
    return [place for turn in turns for place in turn if place is not None]


def _fit(bench: Bench, pairs: Sequence[tuple[str, str]]) -> bool:
    """Return whether the longest row fits after the examples."""
    bound = max_positions(bench.model)
    if bound is None:
        return True
    in_front = sum(map(bench.objective.instruction_tokens, _pieces(pairs)))
    return in_front + max(map(len, [*bench.rows, *bench.training.rows])) < bound
