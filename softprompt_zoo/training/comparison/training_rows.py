"""The rows that trials are trained on: held in memory, or streamed."""

import itertools
from collections.abc import Sequence
from typing import Any

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.objectives.objective import Objective, fitting
from softprompt_zoo.training.streams import SAMPLE, Stream, StreamedRows


class TrainingRows:
    """Rows in memory."""

    def __init__(self, objective: Objective[Any, Any], examples: Sequence[Any], max_length: int) -> None:
        """Tokenize the examples that fit.

        Args:
            objective: The objective that tokenizes them.
            examples: The examples.
            max_length: Longest row in tokens.

        Raises:
            ValueError: If none fits.
        """
        self.objective, self.max_length = objective, max_length
        self.examples = fitting(objective, examples, max_length, "training")
        """The examples, some of which few-shot prompts show."""
        self.rows = objective.rows(self.examples)
        """The same, tokenized; candidates are tried on them."""
        self.count = len(self.rows)
        """Number of rows to train on."""

    def ordered(self, seed: int) -> Any:
        """Return the data set that Trainer takes its batches from."""
        return self.rows

    def in_memory(self) -> Sequence[Any]:
        """Return all rows.

        Raises:
            UnsupportedError: If they are streamed.
        """
        return self.rows


class StreamedTrainingRows(TrainingRows):
    """Streamed rows; the first ones serve as examples and for trying candidates."""

    def __init__(self, objective: Objective[Any, Any], stream: Stream, max_length: int) -> None:
        super().__init__(objective, [*itertools.islice(stream, SAMPLE)], max_length)
        self.stream = stream
        self.count = len(stream)

    def ordered(self, seed: int) -> Any:
        """Return a stream of rows, shuffled with the seed."""
        return StreamedRows(self.objective, self.stream, self.max_length, seed)

    def in_memory(self) -> Sequence[Any]:
        """Raise `UnsupportedError`."""
        raise UnsupportedError(
            "its rows are read while training, and a shared batch needs all of them in memory; leave out --streaming "
            "or --together"
        )


def training_rows(objective: Objective[Any, Any], train: Any, most: int | None, max_length: int) -> TrainingRows:
    """Return the training rows, in memory or streamed.

    Args:
        objective: The objective that tokenizes them.
        train: A list of examples, or a `Stream`.
        most: Maximum number of rows; `None` for all.
        max_length: Longest row in tokens.

    Raises:
        ValueError: If none fits.
    """
    if isinstance(train, Stream):
        return StreamedTrainingRows(objective, train, max_length)
    return TrainingRows(objective, train[:most], max_length)
