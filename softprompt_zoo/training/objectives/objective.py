"""The interface between data, model and evaluation, which every objective implements."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor

from softprompt_zoo.training.objectives.rows import R

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base

E = TypeVar("E")
"""An example, as read from a file."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure of the quality of answers."""

    name: str
    """Its key in `Measured.metrics`."""
    title: str
    """Its title in tables."""
    more_is_better: bool = True


@dataclasses.dataclass(frozen=True)
class Measured:
    """The result of measuring a model on some rows."""

    loss: float
    """Mean loss in nats, per item that `Objective.loss_of` names."""
    metrics: dict[str, float]
    """A value for each of the objective's metrics."""
    answers: list[str]
    """The model's answers, row by row; only for the first rows if answers are generated."""


class Objective(Protocol[E, R]):
    """Defines the rows and how a model is scored on them."""

    name: str
    """The name for `--objective`."""
    base: "Base"
    """The base model, whose weights `load` reads."""
    options: Mapping[str, Any]
    """Options with which a method is attached, unless the user chose others."""
    model_class: str
    """Name of the transformers class that loads its models."""
    model_arguments: tuple[str, ...]
    """Further arguments of that class besides the model, as Python code."""
    metrics: tuple[Metric, ...]
    """The metrics; the first is the main one."""
    loss_of: str
    """The item over which the loss is averaged, such as "target token"."""

    @property
    def facts(self) -> dict[str, Any]:
        """What it learned from the data, such as its classes, as JSON values from which it can be recreated."""

    def load(self, dtype: str) -> "PreTrainedModel":
        """Load the required model, in eval mode."""

    def rows(self, examples: Sequence[E]) -> list[R]:
        """Tokenize examples."""

    def longest(self, rows: Sequence[R]) -> list[R]:
        """Return the largest rows."""

    def collate(self, rows: Sequence[R]) -> dict[str, Tensor]:
        """Make a batch with `labels`; its loss is the mean over labels that are not `IGNORED`."""

    def measure(self, model: "PreTrainedModel", examples: Sequence[E], rows: Sequence[R], count: int) -> Measured:
        """Measure a model in its current state.

        Args:
            model: The model; put into eval mode.
            examples: The examples.
            rows: The same examples, tokenized.
            count: Number of examples to generate answers for, if answers are generated; at least 1.

        Returns:
            The loss, the metrics and the answers.
        """

    def measured_on(self, rows: int, count: int) -> str:
        """Describe how the numbers of a table were measured: on `rows` rows, and answers to `count` of them."""

    def with_instruction(self, instruction: str) -> "Objective[E, R]":
        """Return a copy that puts a hand-written prompt before every text."""

    def with_examples(self, pieces: Sequence[str]) -> "Objective[E, R]":
        """Return a copy that puts examples before every text.

        Args:
            pieces: Texts with their answers, and the separators between them, each to be tokenized separately.

        Raises:
            UnsupportedError: If its models read no answers.
        """

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Return the answers of a model to texts, as `generate` prints them.

        Args:
            model: The model; put into eval mode.
            texts: The texts of the user.
            most: Maximum length of an answer in tokens, if answers are generated.

        Returns:
            An answer for each text.
        """

    def shown(self, example: E) -> tuple[str, str]:
        """Return an example as a table shows it: the input and the reference."""


def fitting(objective: Objective[E, Any], examples: Sequence[E], max_length: int, what: str) -> list[E]:
    """Leave out examples that are too long; truncating them would train on partial targets.

    Args:
        objective: The objective that tokenizes them.
        examples: The examples.
        max_length: Maximum length of a row, in tokens.
        what: Kind of the rows, for the message.

    Returns:
        Those that fit.

    Raises:
        ValueError: If none fits.
    """
    lengths = [len(row) for row in objective.rows(examples)]
    kept = [example for example, length in zip(examples, lengths, strict=True) if length <= max_length]
    if not kept:
        raise ValueError(
            f"none of the {len(lengths)} {what} rows fits into {max_length} tokens; the shortest has "
            f"{min(lengths)}; raise --max-length, or choose a model that takes longer texts"
        )
    return kept
