"""The rows that trials are trained on: held in memory, or read while training."""

import itertools
from collections.abc import Sequence
from typing import Any

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.objectives.objective import Objective, fitting
from softprompt_zoo.training.streams import SAMPLE, Stream, StreamedRows


class TrainingRows:
    """Rows in memory."""

    def __init__(self, objective: Objective[Any, Any], examples: Sequence[Any], max_length: int) -> None:
        """Tokenize what fits.

        Args:
            objective: What tokenizes.
            examples: The examples.
            max_length: Longest row in tokens.

        Raises:
            ValueError: If none fits.
        """
        self.objective, self.max_length = objective, max_length
        self.examples = fitting(objective, examples, max_length, "training")
        """Examples, that prompts show some of."""
        self.rows = objective.rows(self.examples)
        """The same tokenized, that a model is tried on."""
        self.count = len(self.rows)
        """How many there are to train on."""

    def ordered(self, seed: int) -> Any:
        """Return what Trainer takes its batches from."""
        return self.rows

    def in_memory(self) -> Sequence[Any]:
        """Return all rows.

        Raises:
            UnsupportedError: If they are read while training.
        """
        return self.rows


class StreamedTrainingRows(TrainingRows):
    """Rows that are read while training; the first ones are shown and tried."""

    def __init__(self, objective: Objective[Any, Any], stream: Stream, max_length: int) -> None:
        super().__init__(objective, [*itertools.islice(stream, SAMPLE)], max_length)
        self.stream = stream
        self.count = len(stream)

    def ordered(self, seed: int) -> Any:
        """Return a stream of rows, mixed by the seed."""
        return StreamedRows(self.objective, self.stream, self.max_length, seed)

    def in_memory(self) -> Sequence[Any]:
        """Refuse to."""
        raise UnsupportedError("its rows are read while training, and a shared batch needs all of them; leave out one")


def training_rows(objective: Objective[Any, Any], train: Any, most: int | None, max_length: int) -> TrainingRows:
    """Take training rows as they come.

    Args:
        objective: What tokenizes.
        train: A list of examples, or a `Stream`.
        most: As many of them at most; `None` for all.
        max_length: Longest row in tokens.

    Raises:
        ValueError: If none fits.
    """
    if isinstance(train, Stream):
        return StreamedTrainingRows(objective, train, max_length)
    return TrainingRows(objective, train[:most], max_length)
