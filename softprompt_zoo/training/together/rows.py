"""The rows of trainings that share their batches, each in the order that it has alone."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Place = tuple[int, int]
"""Index of a training, and of a row in the data."""


def first_batches(loader: DataLoader[Any], steps: int) -> list[list[int]]:
    """Return the rows of a training's first batches.

    Args:
        loader: That of its own Trainer.
        steps: How many batches.

    Returns:
        The indices of the rows of each.
    """
    return list(itertools.islice(_epochs(loader), steps))


def _epochs(loader: Any) -> Iterator[list[int]]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader.batch_sampler


class SharedBatches(Dataset[list[Place]]):
    """One item for each step: the rows of all trainings, one training after the other."""

    def __init__(self, orders: Sequence[Sequence[Sequence[int]]]) -> None:
        """Put the orders of several trainings together.

        Args:
            orders: The rows of each step of each training, all of as many steps.
        """
        self.orders = orders

    def __len__(self) -> int:
        return len(self.orders[0])

    def __getitem__(self, step: int) -> list[Place]:
        return [(index, row) for index, order in enumerate(self.orders) for row in order[step]]


class SharedCollator:
    """Pads the rows of one step to the longest, and says whose each is."""

    def __init__(self, rows: Sequence[Any], collate: Callable[[Sequence[Any]], dict[str, Tensor]]) -> None:
        self.rows = rows
        self.collate = collate

    def __call__(self, items: Sequence[Sequence[Place]]) -> dict[str, Tensor]:
        """Make the batch of a single item of `SharedBatches`, with `prompts`, the index of each row's training."""
        [places] = items
        batch = self.collate([self.rows[row] for _, row in places])
        return {**batch, "prompts": torch.tensor([index for index, _ in places])}
