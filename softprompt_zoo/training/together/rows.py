"""The rows of trainings that share batches, in the order that each training has alone."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Place = tuple[int, int]
"""Index of a training, and index of a row in the data."""


def first_batches(loader: DataLoader[Any], steps: int) -> list[list[int]]:
    """Return the rows of a training's first batches.

    Args:
        loader: The data loader of the training's own Trainer.
        steps: Number of batches.

    Returns:
        The row indices of each batch.
    """
    return list(itertools.islice(_epochs(loader), steps))


def _epochs(loader: Any) -> Iterator[list[int]]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader.batch_sampler


class SharedBatches(Dataset[list[Place]]):
    """One item per step: the rows of all trainings, one training after the other."""

    def __init__(self, orders: Sequence[Sequence[Sequence[int]]]) -> None:
        """Combine the row orders of several trainings.

        Args:
            orders: The rows of each step of each training, all with the same number of steps.
        """
        self.orders = orders

    def __len__(self) -> int:
        return len(self.orders[0])

    def __getitem__(self, step: int) -> list[Place]:
        return [(index, row) for index, order in enumerate(self.orders) for row in order[step]]


class SharedCollator:
    """Pads the rows of one step to the longest, and adds the training of each row."""

    def __init__(self, rows: Sequence[Any], collate: Callable[[Sequence[Any]], dict[str, Tensor]]) -> None:
        self.rows = rows
        self.collate = collate

    def __call__(self, items: Sequence[Sequence[Place]]) -> dict[str, Tensor]:
        """Return the batch of a single item of `SharedBatches`, with `prompts`, the index of each row's training."""
        [places] = items
        batch = self.collate([self.rows[row] for _, row in places])
        return {**batch, "prompts": torch.tensor([index for index, _ in places])}
