"""Prompts whose tokens differ for each task or row: every row sees its own, and none are built twice."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Int, Shaped
from softprompt_zoo.sites.selection import Combination, Part, Selection, times_repeated
from softprompt_zoo.tokens.placement import Placement

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


def check_task_ids(task_ids: Any) -> Int[Tensor, " #rows"] | None:
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
        task_ids: From `check_task_ids`, one per row, or one for all.
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


def split_tasks(
    selection: Selection, placements: Mapping[Part, Placement], task_ids: Int[Tensor, " _"] | None
) -> tuple[Selection, dict[Part, Placement]]:
    """Turn every requested task into a separate part.

    Args:
        selection: Which rows see which combination.
        placements: The placements for all tasks.
        task_ids: One integer per row or for all rows, or `None`. Rows whose prompts have no tasks may have any.

    Returns:
        The selection and the placements, without tasks.

    Raises:
        ValueError: If the ids are out of range, or missing where a prompt has several tasks.
    """
    counts = _task_counts(placements)
    if not counts:
        return selection, dict(placements)
    limits = [_limit(combination, counts) for combination in selection.combinations]
    wanted, rows = _wanted(limits, selection.rows, task_ids)

    def of_task(part: Part, task: int) -> Placement:
        return dataclasses.replace(placements[part], tokens=placements[part].tokens.task(task))

    return _split(selection, placements, wanted, rows, counts, of_task)


def split_rows(
    selection: Selection,
    placements: Mapping[Part, Placement],
    of_rows: Mapping[Part, Sequence[Placement]],
    rows: int,
    device: torch.device,
) -> tuple[Selection, dict[Part, Placement]]:
    """Turn the placements made from each row's text into separate parts.

    Args:
        selection: Which rows see which combination.
        placements: The placements.
        of_rows: For prompts that differ for each row, the placements made from each row of the text.
        rows: Rows of the batch; beams repeat each row of the text in place.
        device: The device of the batch.

    Returns:
        The selection and the placements, separate for every row of the text.

    Raises:
        ValueError: If the batch is not a multiple of the text's rows.
    """
    begun = len(next(iter(of_rows.values())))
    ids = torch.arange(begun, device=device).repeat_interleave(times_repeated(begun, rows))
    counts = dict.fromkeys(of_rows, begun)
    wanted: Sequence[tuple[int, int]] = [(0, row) for row in range(begun)]
    index: Int[Tensor, " rows"] | None = ids
    if selection.rows is not None:
        limits = [_limit(combination, counts) for combination in selection.combinations]
        wanted, index = _wanted(limits, selection.rows, ids)
    split, placed = _split(selection, placements, wanted, index, counts, lambda part, row: of_rows[part][row])
    is_in_order = index is ids and rows == begun
    return dataclasses.replace(split, is_in_order=is_in_order), placed


def _split(
    selection: Selection,
    placements: Mapping[Part, Placement],
    wanted: Sequence[tuple[int, int]],
    rows: Int[Tensor, " rows"] | None,
    counts: Mapping[Part, int],
    of_choice: Callable[[Part, int], Placement],
) -> tuple[Selection, dict[Part, Placement]]:
    """Make a combination from each requested pair of combination and choice."""
    split: dict[Part, Placement] = {}
    combinations = []
    for index, choice in wanted:
        chosen: dict[Part, Placement] = {}
        for part in selection.combinations[index]:
            if part in counts:
                chosen[Part(part.name, choice)] = of_choice(part, choice)
            else:
                chosen[part] = placements[part]
        split |= chosen
        combinations.append(tuple(chosen))
    return Selection(tuple(combinations), rows), split


def _task_counts(placements: Mapping[Part, Placement]) -> dict[Part, int]:
    """Count the tasks of the placements that have any."""
    counted = [(part, placement.tokens.num_tasks) for part, placement in placements.items()]
    return {part: count for part, count in counted if count is not None}


_Limit = tuple[str, int] | None
"""The prompt of a combination with the fewest tasks, and their number; `None` if none has any."""


def _limit(combination: Combination, counts: Mapping[Part, int]) -> _Limit:
    found: _Limit = None
    for part in combination:
        if part in counts and (found is None or counts[part] < found[1]):
            found = part.name, counts[part]
    return found


def _check_single(limits: list[_Limit]) -> None:
    """Refuse several tasks if none is chosen."""
    several = [limit for limit in limits if limit is not None and limit[1] > 1]
    if several:
        name, count = several[0]
        raise ValueError(
            f"prompt {name!r} has {count} tasks and task_ids is missing; give the task of every row, an integer "
            f"from 0 to {count - 1}"
        )


def _wanted(
    limits: list[_Limit], rows: Int[Tensor, " rows"] | None, ids: Int[Tensor, " _"] | None
) -> tuple[list[tuple[int, int]], Int[Tensor, " rows"] | None]:
    """List the pairs of combination and task that are needed, and each row's index in the list."""
    if ids is None:
        _check_single(limits)
        return [(index, 0) for index in range(len(limits))], rows
    if rows is not None:
        ids = spread_task_ids(ids, rows.shape[0])
    rows = torch.zeros_like(ids) if rows is None else rows.to(ids.device)
    return _every_task(limits, rows, ids) if torch.compiler.is_compiling() else _asked(limits, rows, ids)


def _asked(
    limits: list[_Limit], rows: Int[Tensor, " rows"], ids: Int[Tensor, " rows"]
) -> tuple[list[tuple[int, int]], Int[Tensor, " rows"]]:
    """List the pairs of combination and task that rows request, and each row's index in the list."""
    pairs = []
    for row, (index, task) in enumerate(zip(rows.tolist(), ids.tolist(), strict=True)):
        limit = limits[index]
        if limit is not None:
            _check_task_of_row(task, row, *limit)
        pairs.append((index, 0 if limit is None else task))
    wanted = list(dict.fromkeys(pairs))
    return wanted, torch.tensor([wanted.index(pair) for pair in pairs], device=ids.device)


def _check_task_of_row(task: int, row: int, name: str, count: int) -> None:
    if not 0 <= task < count:
        has = "one task; expected 0" if count == 1 else f"{count} tasks; expected an integer from 0 to {count - 1}"
        raise ValueError(f"task_ids has {task} in row {row}, where prompt {name!r} has {has}")


def _every_task(
    limits: list[_Limit], rows: Int[Tensor, " rows"], ids: Int[Tensor, " rows"]
) -> tuple[list[tuple[int, int]], Int[Tensor, " rows"]]:
    """Do the same while tracing, when values are unknown: prepare every task."""
    wanted: list[tuple[int, int]] = []
    starts = []
    counts = [-1 if limit is None else limit[1] for limit in limits]
    for index, count in enumerate(counts):
        starts.append(len(wanted))
        for task in range(max(count, 1)):
            wanted.append((index, task))
    bounds = torch.tensor(counts, device=ids.device)[rows]
    is_right = (bounds < 0) | ((ids >= 0) & (ids < bounds))
    torch._assert_async(is_right.all(), "task_ids has a task that the row's prompt does not have")
    return wanted, torch.tensor(starts, device=ids.device)[rows] + torch.where(bounds < 0, 0, ids)
