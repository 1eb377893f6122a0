"""The arguments that choose tasks: `task_ids` of `forward` and `generate`, and `task` of operations."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Int, Shaped

EXPECTED = "expected integers of shape (rows,), the task of every row, or (1,), the task of all"


def check_task(task: Any, count: int, name: str) -> None:
    """Refuse anything but a valid task index.

    Args:
        task: The user's value.
        count: Tasks of the prompt.
        name: The prompt's name, for the message.

    Raises:
        ValueError: If the prompt does not have that task.
    """
    if isinstance(task, bool) or not isinstance(task, int) or not 0 <= task < count:
        raise ValueError(f"task is {task!r}; prompt {name!r} has {count} tasks, counted from 0; give one of them")


def read_task_ids(task_ids: Any) -> Int[Tensor, " #rows"] | None:
    """Read the `task_ids` argument of `forward` and `generate`.

    Args:
        task_ids: One integer per row, or one for all rows, as a tensor or a list; or `None`.

    Returns:
        One task for each row, or one for all; or `None`.

    Raises:
        TypeError: If it is neither a tensor nor a list, or the list has entries other than numbers.
        ValueError: If it has a wrong shape, or values other than integers.
    """
    if task_ids is None:
        return None
    ids = _as_tensor(task_ids)
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"task_ids has shape {tuple(ids.shape)} and dtype {ids.dtype}; {EXPECTED}")
    return ids.long()


def _as_tensor(task_ids: Any) -> Shaped[Tensor, "..."]:
    if isinstance(task_ids, Tensor):
        return task_ids
    if not isinstance(task_ids, list | tuple):
        raise TypeError(f"task_ids is {task_ids!r} ({type(task_ids).__name__}); {EXPECTED}")
    try:
        return torch.tensor(task_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"task_ids is {task_ids!r}; {EXPECTED}, any if a row's prompts have no tasks") from error


def spread_task_ids(task_ids: Int[Tensor, " _"], rows: int) -> Int[Tensor, " {rows}"]:
    """Give every row of the batch its task.

    Args:
        task_ids: From `read_task_ids`, one per row, or one for all.
        rows: Rows of the batch.

    Returns:
        One task for each row.

    Raises:
        ValueError: If the number of ids is wrong.
    """
    if task_ids.shape[0] == 1:
        return task_ids.expand(rows)
    if task_ids.shape[0] != rows:
        raise ValueError(
            f"task_ids has {task_ids.shape[0]} entries for a batch of {rows} rows; give the task of every row, or one "
            "for all rows"
        )
    return task_ids
