"""Parts whose tokens differ by task, or by row of the text: every row gets its own, and none are built twice.

At first a part stands for all of its tasks or rows. It is separated into one part for each that is seen, and so are
the combinations with that part in them. For example, three rows see prompt "a", which has tasks, followed by "b", which
has none, and ask for the tasks 2, 0 and 2 of "a":

                     before                         after
    combinations     (Part("a"), Part("b"))         (Part("a", 2), Part("b")), (Part("a", 0), Part("b"))
    rows             None: all see the only one     0, 1, 0

If instead the tokens of "a" are made from the text of each row, the combinations afterwards start with `Part("a", 0)`,
`Part("a", 1)` and `Part("a", 2)`, and the rows are 0, 1, 2.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softprompt_zoo.shapes import Int
from softprompt_zoo.sites.selection import Combination, Part, Selection, indexed, times_repeated
from softprompt_zoo.sites.task_ids_argument import spread_task_ids
from softprompt_zoo.tokens.placement import Placement


class _Pairs(NamedTuple):
    """Pairs of a combination, by its index, and the task or row of the text whose tokens its parts have."""

    distinct: Sequence[tuple[int, int]]
    """Each pair once; a combination without tasks, or not made from the text, is paired with 0."""
    rows: Int[Tensor, " rows"] | None
    """For each row of the batch, the index of its pair; `None` if all rows share the only one."""


def separate_tasks(
    selection: Selection, placements: Mapping[Part, Placement], task_ids: Int[Tensor, " _"] | None
) -> tuple[Selection, dict[Part, Placement]]:
    """Separate the parts that have tasks into one part for each task that is seen.

    Args:
        selection: Which rows see which combination.
        placements: The placements for all tasks.
        task_ids: One integer per row or for all rows, or `None`. Rows whose prompts have no tasks may have any.

    Returns:
        The selection and the placements, without tasks.

    Raises:
        ValueError: If the ids are out of range, or missing where any prompt of a row has several tasks.
    """
    counts = _task_counts(placements)
    if not counts:
        return selection, dict(placements)
    fewest = [_fewest_tasks(combination, counts) for combination in selection.combinations]
    if task_ids is None:
        _check_single_tasks(selection.combinations, fewest, counts)
        pairs = _Pairs([(index, 0) for index in range(len(fewest))], selection.rows)
    else:
        tasks = task_ids if selection.rows is None else spread_task_ids(task_ids, selection.rows.shape[0])
        combinations = torch.zeros_like(tasks) if selection.rows is None else selection.rows.to(tasks.device)
        _check_tasks(fewest, combinations, tasks)
        pairs = _pairs([0 if limit is None else limit.tasks for limit in fewest], combinations, tasks)

    def of_task(part: Part, task: int) -> Placement:
        return dataclasses.replace(placements[part], tokens=placements[part].tokens.task(task))

    return _separated(selection, placements, pairs, counts, of_task)


def separate_rows(
    selection: Selection,
    placements: Mapping[Part, Placement],
    of_rows: Mapping[Part, Sequence[Placement]],
    rows: int,
    device: torch.device,
) -> tuple[Selection, dict[Part, Placement]]:
    """Separate the parts that are made from the text into one part for each row of the text.

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
    text_rows = torch.arange(begun, device=device).repeat_interleave(times_repeated(begun, rows))
    if selection.rows is None:
        pairs = _Pairs([(0, row) for row in range(begun)], text_rows)
    else:
        sizes = [begun if any([part in of_rows for part in parts]) else 0 for parts in selection.combinations]
        pairs = _pairs(sizes, selection.rows.to(device), text_rows)
    separated, placed = _separated(selection, placements, pairs, of_rows, lambda part, row: of_rows[part][row])
    is_in_order = selection.rows is None and rows == begun
    return dataclasses.replace(separated, is_in_order=is_in_order), placed


def _pairs(sizes: Sequence[int], combinations: Int[Tensor, " rows"], chosen: Int[Tensor, " rows"]) -> _Pairs:
    """Pair the combination of each row with its task or row of the text.

    Args:
        sizes: For each combination, how many tasks or rows it can be paired with; 0 if its parts do not differ.
        combinations: Index of each row's combination.
        chosen: The task, or the row of the text, of each row.

    Returns:
        The pairs that rows see; all possible ones while tracing, when it is unknown which these are.
    """
    if torch.compiler.is_compiling():
        return _all_pairs(sizes, combinations, chosen)
    pairs = [
        (index, choice if sizes[index] else 0)
        for index, choice in zip(combinations.tolist(), chosen.tolist(), strict=True)
    ]
    distinct, rows = indexed(pairs)
    return _Pairs(distinct, torch.tensor(rows, device=chosen.device))


def _all_pairs(sizes: Sequence[int], combinations: Int[Tensor, " rows"], chosen: Int[Tensor, " rows"]) -> _Pairs:
    distinct: list[tuple[int, int]] = []
    starts = []
    for index, size in enumerate(sizes):
        starts.append(len(distinct))
        for choice in range(max(size, 1)):
            distinct.append((index, choice))
    size_of_rows = torch.tensor(sizes, device=chosen.device)[combinations]
    start_of_rows = torch.tensor(starts, device=chosen.device)[combinations]
    return _Pairs(distinct, start_of_rows + torch.where(size_of_rows == 0, 0, chosen))


def _separated(
    selection: Selection,
    placements: Mapping[Part, Placement],
    pairs: _Pairs,
    differing: Collection[Part],
    placement_of: Callable[[Part, int], Placement],
) -> tuple[Selection, dict[Part, Placement]]:
    """Make a combination from each pair; its differing parts get the placement of the pair's task or row."""
    placed: dict[Part, Placement] = {}
    combinations = []
    for index, task_or_row in pairs.distinct:
        combination = []
        for part in selection.combinations[index]:
            own = Part(part.name, task_or_row) if part in differing else part
            if own not in placed:
                placed[own] = placement_of(part, task_or_row) if part in differing else placements[part]
            combination.append(own)
        combinations.append(tuple(combination))
    return Selection(tuple(combinations), pairs.rows), placed


def _task_counts(placements: Mapping[Part, Placement]) -> dict[Part, int]:
    """Count the tasks of the placements that have any."""
    counted = [(part, placement.tokens.num_tasks) for part, placement in placements.items()]
    return {part: count for part, count in counted if count is not None}


class _Fewest(NamedTuple):
    """The prompt with the fewest tasks in a combination, which limits the task of a row that sees the combination."""

    name: str
    """The prompt's name."""
    tasks: int
    """How many it has."""


def _fewest_tasks(combination: Combination, counts: Mapping[Part, int]) -> _Fewest | None:
    """Find the prompt with the fewest tasks; `None` if no prompt has tasks."""
    found: _Fewest | None = None
    for part in combination:
        if part in counts and (found is None or counts[part] < found.tasks):
            found = _Fewest(part.name, counts[part])
    return found


def _check_single_tasks(
    combinations: Sequence[Combination], fewest: Sequence[_Fewest | None], counts: Mapping[Part, int]
) -> None:
    """Refuse a prompt of several tasks if none is chosen."""
    for combination, limit in zip(combinations, fewest, strict=True):
        for part in combination:
            count = counts.get(part, 1)
            if limit is None or count == 1:
                continue
            beside = "" if limit.tasks == count else f", which prompt {limit.name!r} in the same row has, too"
            raise ValueError(
                f"prompt {part.name!r} has {count} tasks and task_ids is missing; give the task of every row, "
                f"{_allowed(limit.tasks)}{beside}"
            )


def _allowed(tasks: int) -> str:
    """Return the tasks that a row may have, for a message."""
    return "0" if tasks == 1 else f"an integer from 0 to {tasks - 1}"


def _check_tasks(
    fewest: Sequence[_Fewest | None], combinations: Int[Tensor, " rows"], tasks: Int[Tensor, " rows"]
) -> None:
    """Refuse a task that a prompt of its row does not have; while tracing, prepare this for when the values are known.

    Args:
        fewest: For each combination, the prompt with the fewest tasks.
        combinations: Index of each row's combination.
        tasks: The task of each row.

    Raises:
        ValueError: If there is such a task.
    """
    if torch.compiler.is_compiling():
        counts = [-1 if limit is None else limit.tasks for limit in fewest]
        bounds = torch.tensor(counts, device=tasks.device)[combinations]
        is_right = (bounds < 0) | ((tasks >= 0) & (tasks < bounds))
        torch._assert_async(is_right.all(), "task_ids has a task that the row's prompt does not have")
        return
    for row, (index, task) in enumerate(zip(combinations.tolist(), tasks.tolist(), strict=True)):
        limit = fewest[index]
        if limit is not None and not 0 <= task < limit.tasks:
            name, count = limit
            has = "one task" if count == 1 else f"{count} tasks"
            raise ValueError(
                f"task_ids has {task} in row {row}, where prompt {name!r} has {has}; expected {_allowed(count)}"
            )
