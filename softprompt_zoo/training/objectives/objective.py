"""The seam between data, model and measuring: what every kind of objective offers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor

from softprompt_zoo.training.objectives.rows import R

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base

E = TypeVar("E")
"""An example, as it was read from a file."""


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
    base: "Base"
    """The model, whose weights `load` reads."""
    options: Mapping[str, Any]
    """Options that a method is attached with, unless the user chose others."""
    model_class: str
    """Name of the class in transformers that loads its models."""
    model_arguments: tuple[str, ...]
    """What that class is told besides the model, in Python."""
    metrics: tuple[Metric, ...]
    """What it is measured by; the first is the main one."""
    loss_of: str
    """What the loss is a mean over, such as "target token"."""

    @property
    def facts(self) -> dict[str, Any]:
        """What it learned from the data, such as its classes, in values of JSON; it is made of these again."""

    def load(self, dtype: str) -> "PreTrainedModel":
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

    def with_examples(self, pieces: Sequence[str]) -> "Objective[E, R]":
        """Return one that puts examples in front of every text.

        Args:
            pieces: Texts with their answers, and what is between them, each to be tokenized by itself.

        Raises:
            UnsupportedError: If its models read no answers.
        """

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Say what a model makes of texts, as `generate` prints it.

        Args:
            model: The model; put into eval mode.
            texts: What the user wrote.
            most: Longest answer in tokens, where answers are written.

        Returns:
            An answer per text.
        """

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
