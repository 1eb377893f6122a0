"""Prompts with tasks: every row sees the tokens of its own task, and each task's are made once."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from softprompt_zoo.sites.arrange import Combination, Selection
from softprompt_zoo.tokens import InputTokens, Placement


def count_tasks(placement: Placement) -> int | None:
    """Say how many tasks a placement has tokens for; `None` if it knows no tasks."""
    tokens = placement.tokens
    return tokens.embeddings.shape[0] if isinstance(tokens, InputTokens) and tokens.embeddings.ndim == 3 else None


def split_tasks(
    selection: Selection,
    placements: Mapping[str, Placement],
    task_ids: Tensor | None,
    pick: Callable[[str, Placement, int], Placement],
) -> tuple[Selection, dict[str, Placement]]:
    """Turn every task that is asked for into a prompt of its own, named `<prompt>#<task>`.

    Args:
        selection: Which rows see which combination.
        placements: What is placed, by prompt.
        task_ids: `(rows,)` integers, or `None`.
        pick: From a prompt's name, its placement and a task to the placement of that task alone.

    Returns:
        The selection and the placements, without tasks.

    Raises:
        ValueError: If a prompt has tasks and the ids are missing, out of range, or of another shape.
    """
    counted = [(name, count_tasks(placement)) for name, placement in placements.items()]
    counts = {name: count for name, count in counted if count is not None}
    if not counts:
        return selection, dict(placements)
    name, count = min(counts.items(), key=lambda item: item[1])
    expected = f"expected integers from 0 to {count - 1}, one per row"
    if task_ids is None:
        raise ValueError(f"prompt {name!r} has {count} tasks and task_ids is missing; {expected}")
    if task_ids.ndim != 1 or task_ids.is_floating_point() or task_ids.dtype == torch.bool:
        raise ValueError(f"task_ids has shape {tuple(task_ids.shape)} and dtype {task_ids.dtype}; {expected}")
    if selection.rows is not None and selection.rows.shape != task_ids.shape:
        raise ValueError(f"task_ids has {task_ids.shape[0]} entries for {selection.rows.shape[0]} rows; {expected}")
    rows = torch.zeros_like(task_ids) if selection.rows is None else selection.rows.to(task_ids.device)
    if torch.compiler.is_compiling():
        # Values are unknown while tracing: keep every task ready.
        wanted = [(index, task) for index in range(len(selection.combinations)) for task in range(count)]
        variant = rows * count + task_ids
    else:
        values = task_ids.tolist()
        wrong = next((value for value in values if not 0 <= value < count), None)
        if wrong is not None:
            raise ValueError(f"task_ids has {wrong}, prompt {name!r} has {count} tasks; {expected}")
        pairs = list(zip(rows.tolist(), values, strict=True))
        wanted = list(dict.fromkeys(pairs))
        variant = torch.tensor([wanted.index(pair) for pair in pairs], device=task_ids.device)
    renamed = [_rename(selection.combinations[index], counts, task) for index, task in wanted]
    chosen = Selection(tuple(renamed), variant)
    split = {}
    for combination in chosen.combinations:
        for part in combination:
            prompt, _, task = part.partition("#")
            split[part] = pick(prompt, placements[prompt], int(task)) if task else placements[prompt]
    return chosen, split


def _rename(combination: Combination, counts: Mapping[str, int], task: int) -> Combination:
    return tuple([f"{name}#{task}" if name in counts else name for name in combination])
