"""The seam between data, model and measuring: what every kind of objective offers."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base

IGNORED = -100
"""Label that transformers' losses skip."""

E = TypeVar("E")
"""An example, as it was read from a file."""


class TokenRow(Protocol):
    """A tokenized example."""

    @property
    def ids(self) -> list[int]:
        """Every token of the row that the model has to know."""

    def __len__(self) -> int:
        """Return how many tokens the row takes, to compare with `--max-length`."""


R = TypeVar("R", bound=TokenRow)
"""A tokenized example."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that says how good answers are."""

    name: str
    """Its key in `Measured.metrics`."""
    title: str
    """As a table shows it."""
    more_is_better: bool = True


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model was measured at on some rows."""

    loss: float
    """Mean loss in nats, over what `Objective.loss_of` names."""
    metrics: dict[str, float]
    """A number for each of the objective's metrics."""
    answers: list[str]
    """What the model said, row by row; of the first rows only where answers are written."""


class Objective(Protocol[E, R]):
    """What rows are and how a model is scored on them."""

    name: str
    """What `--objective` takes."""
    model_class: str
    """Name of the class in transformers that loads its models."""
    metrics: tuple[Metric, ...]
    """What it is measured by; the first is the main one."""
    loss_of: str
    """What the loss is a mean over, such as "target token"."""

    def load(self, base: "Base", dtype: str) -> "PreTrainedModel":
        """Load the model that it needs, in eval mode."""

    def rows(self, examples: Sequence[E]) -> list[R]:
        """Tokenize examples."""

    def longest(self, rows: Sequence[R]) -> list[R]:
        """Return the rows that need most room."""

    def collate(self, rows: Sequence[R]) -> dict[str, Tensor]:
        """Make a batch, with `labels`; its loss is the mean over those that are not `IGNORED`."""

    def measure(self, model: "PreTrainedModel", examples: Sequence[E], rows: Sequence[R], count: int) -> Measured:
        """Measure a model as it is.

        Args:
            model: The model; put into eval mode.
            examples: The examples.
            rows: The same ones tokenized.
            count: Examples to write answers for, where writing is slow; at least 1.

        Returns:
            What came of it.
        """

    def measured_on(self, rows: int, count: int) -> str:
        """Say on what the numbers of a table are measured: `rows` rows, and answers to `count` of them."""

    def with_instruction(self, instruction: str) -> "Objective[E, R]":
        """Return one that puts a hand-written prompt in front of every text."""

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""

    def shown(self, example: E) -> tuple[str, str]:
        """Return an example as a table shows it: the input, and the right answer."""


def fitting(objective: Objective[E, Any], examples: Sequence[E], max_length: int, what: str) -> list[E]:
    """Leave out examples that are too long; cutting them would train on half a target.

    Args:
        objective: What tokenizes them.
        examples: The examples.
        max_length: Longest row in tokens.
        what: What they are, for the message.

    Returns:
        Those that fit.

    Raises:
        ValueError: If none does.
    """
    lengths = [len(row) for row in objective.rows(examples)]
    kept = [example for example, length in zip(examples, lengths, strict=True) if length <= max_length]
    if not kept:
        raise ValueError(
            f"none of the {len(lengths)} {what} rows fits into {max_length} tokens, the shortest has "
            f"{min(lengths)}; raise --max-length, or choose a model that takes longer texts"
        )
    return kept
