"""Batches over the data sets of several tasks: one data set with a task column, and the order of its rows.

Source: Wang et al., "Multitask Prompt Tuning", 2023 (arXiv 2303.02861), section 3.3: rows are drawn in proportion to
the sizes of the data sets (Raffel et al. 2020), and every batch has a random number of tasks.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from softprompt_zoo.config.checks import check_positive_integer


class MixedTasks(Dataset[dict[str, Any]]):
    """The data sets of several tasks, concatenated; each row has its `task_ids`."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        """Concatenate data sets.

        Args:
            datasets: One per task, in the order of the tasks; each has a length and returns a mapping for an index.

        Raises:
            ValueError: If there is none, or one is empty.
        """
        self.datasets = list(datasets)
        self.sizes = [len(dataset) for dataset in self.datasets]
        """Rows per task."""
        _check_sizes(self.sizes)
        self._ends = list(itertools.accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        task = bisect.bisect_right(self._ends, index)
        row: Mapping[str, Any] = self.datasets[task][index - self._ends[task] + self.sizes[task]]
        return {**row, "task_ids": task}


class TaskSampler(Sampler[int]):
    """Samples rows of `MixedTasks`: batches with a random number of tasks, drawn in proportion to their sizes.

    Within a task, no row is repeated before all have been drawn. An epoch has as many rows as all tasks together.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, *, min_tasks: int = 2, seed: int = 0) -> None:
        """Configure the order.

        Args:
            sizes: Rows per task.
            batch_size: Rows per batch; must be the same as the DataLoader's.
            min_tasks: Minimum number of tasks per batch; the maximum is all of them.
            seed: Seed of the order; epochs differ from each other even so.

        Raises:
            ValueError: If a size or number is below 1.
        """
        check_positive_integer("batch_size", batch_size)
        check_positive_integer("min_tasks", min_tasks)
        _check_sizes(sizes)
        self.sizes, self.batch_size, self.min_tasks, self.seed = list(sizes), batch_size, min_tasks, seed
        self.epoch = 0
        """The next epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, as `Trainer` does when it resumes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.sizes)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        self.epoch += 1
        starts = [0, *itertools.accumulate(self.sizes)]
        shares = torch.tensor(self.sizes, dtype=torch.float64)
        queues: list[list[int]] = [[] for _ in self.sizes]
        for first in range(0, len(self), self.batch_size):
            fewest = min(self.min_tasks, len(self.sizes))
            count = int(torch.randint(fewest, len(self.sizes) + 1, (1,), generator=generator))
            chosen = torch.multinomial(shares, count, generator=generator)
            rows = min(self.batch_size, len(self) - first)
            for place in torch.multinomial(shares[chosen], rows, replacement=True, generator=generator).tolist():
                task = int(chosen[place])
                if not queues[task]:
                    queues[task] = torch.randperm(self.sizes[task], generator=generator).tolist()
                yield starts[task] + queues[task].pop()


def _check_sizes(sizes: Sequence[int]) -> None:
    if not sizes:
        raise ValueError("there are no data sets; give one per task")
    if min(sizes) < 1:
        raise ValueError(f"the data set of task {list(sizes).index(min(sizes))} is empty; every task needs rows")
