"""Checks of the low-rank factors of tasks, `cols` (tasks, tokens, rank) and `rows` (tasks, rank, hidden)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from softprompt_zoo.errors import BackboneMismatchError, CheckpointError


def check_factors(state: Mapping[str, Tensor], count: Any, hidden: int) -> tuple[int, int, int]:
    """Refuse tensors in a file that are not a shared prompt and factors of consistent sizes.

    Args:
        state: `shared` (tokens, hidden), `cols` and `rows`.
        count: Number of virtual tokens in the file's config; the tensors may have twice as many, with the decoder's.
        hidden: Width of the model's embeddings.

    Returns:
        The numbers of tasks and tokens, and the rank.

    Raises:
        CheckpointError: If the number of tokens does not match.
        BackboneMismatchError: If they are for a different model.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    _check_count(shapes["cols"], count)
    tasks, total, rank = shapes["cols"]
    if shapes["shared"] != (total, hidden) or shapes["rows"] != (tasks, rank, hidden):
        raise BackboneMismatchError(
            f"the adapter's shared prompt has shape {shapes['shared']} and its rows {shapes['rows']}; this model needs "
            f"{(total, hidden)} and {(tasks, rank, hidden)}"
        )
    return tasks, total, rank


def check_factors_fit(source: str | int, shape: Sequence[int], num_tasks: int, rank: int) -> None:
    """Refuse another prompt's factors if their sizes differ from those of the new prompt.

    Args:
        source: The option `source_task`.
        shape: Shape of the other prompt's `cols`.
        num_tasks: Number of tasks of the new prompt.
        rank: Rank of its factors.

    Raises:
        ValueError: If they differ.
    """
    if source != "shared" and shape[2] != rank:
        raise ValueError(
            f"rank is {rank}, but the init prompt has {shape[2]}; set rank={shape[2]}, or source_task='shared'"
        )
    if source == "each" and shape[0] != num_tasks:
        raise ValueError(
            f"num_tasks is {num_tasks}, but the init prompt has {shape[0]}; source_task='each' needs equally many"
        )


def _check_count(cols: tuple[int, ...], count: Any) -> None:
    if len(cols) != 3 or not isinstance(count, int) or cols[1] not in (count, 2 * count):
        raise CheckpointError(
            f"the adapter says {count!r} virtual tokens, but prefix_task_cols has the shape {cols}; "
            "expected (tasks, tokens, rank)"
        )
