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
"""Between two examples, and between the last one and the row. It is tokenized by itself, as methods that learn from
examples do: within a text, many tokenizers split a blank line into two line ends."""


class FewShot:
    """As many training examples in front of every row as were asked for and fit; a `Candidate`."""

    name = "few-shot"
    recipe: Recipe | None = None
    is_trained = False
    varies = True

    def variants(self, choices: Choices, bench: Bench) -> Sequence[Options]:
        """Return its only variant."""
        return [{"shots": choices.shots}]

    @contextlib.contextmanager
    def put_on(self, bench: Bench, trial: Trial) -> Iterator[Fitted]:
        """Put examples in front, drawn with the seed."""
        pieces = _pieces(drawn(bench, trial.options["shots"], trial.seed))
        yield written(bench, pieces, lambda objective: objective.with_examples(pieces))


def _pieces(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is in front of a row, in pieces that are tokenized one by one."""
    return [piece for text, answer in pairs for piece in (text + answer, BETWEEN)]


def drawn(bench: Bench, count: int, seed: int) -> list[tuple[str, str]]:
    """Draw training examples, as many of each answer as of any other where answers recur.

    Args:
        bench: Whose rows.
        count: How many, at most: as many as fit in front of the longest row.
        seed: Of the draw.

    Returns:
        Text and answer of each, in a mixed order.

    Raises:
        UnsupportedError: If none fits, or answers are no text to this model.
    """
    if bench.tasks:
        raise UnsupportedError(
            f"the rows are of {len(bench.tasks)} tasks, and it shows the same examples in front of every row, most of "
            "which would be of another task; compare it on the rows of one task"
        )
    pairs = bench.pairs(_balanced(bench, seed)[:count])
    while pairs and not _fit(bench, pairs):
        pairs.pop()
    if not pairs:
        raise UnsupportedError("not one training example fits in front of the longest row; shorten the rows")
    return pairs


def _balanced(bench: Bench, seed: int) -> list[int]:
    """Return the places of training rows in a mixed order, one of each answer in turn."""
    order = random.Random(seed).sample(range(len(bench.training.examples)), len(bench.training.examples))
    groups: dict[str, list[int]] = {}
    for place in order:
        groups.setdefault(bench.objective.shown(bench.training.examples[place])[1], []).append(place)
    turns = itertools.zip_longest(*groups.values())
    return [place for turn in turns for place in turn if place is not None]


def _fit(bench: Bench, pairs: Sequence[tuple[str, str]]) -> bool:
    """Return whether the longest row has room behind examples."""
    bound = max_positions(bench.model)
    if bound is None:
        return True
    in_front = sum(map(bench.objective.instruction_tokens, _pieces(pairs)))
    return in_front + max(map(len, [*bench.rows, *bench.training.rows])) < bound
