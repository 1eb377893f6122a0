"""Low-rank factors of tasks, `cols` (tasks, tokens, rank) and `rows` (tasks, rank, hidden): whether they fit."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from softprompt_zoo.errors import BackboneMismatchError, CheckpointError


def check_factors(state: Mapping[str, Tensor], count: Any, hidden: int) -> tuple[int, int, int]:
    """Refuse tensors of a file that are not a shared prompt and factors of one size.

    Args:
        state: `shared` (tokens, hidden), `cols` and `rows`.
        count: Virtual tokens that the file speaks of; the tensors may be of twice as many, the decoder's too.
        hidden: Width of the model's embeddings.

    Returns:
        Tasks, tokens and rank.

    Raises:
        CheckpointError: If the tokens are not those that the file speaks of.
        BackboneMismatchError: If they are of another model.
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
    """Refuse another prompt's factors that are of other sizes than the new prompt's.

    Args:
        source: The option `source_task`.
        shape: Of the other prompt's `cols`.
        num_tasks: Tasks of the new prompt.
        rank: Rank of its factors.

    Raises:
        ValueError: If they are.
    """
    if source != "shared" and shape[2] != rank:
        raise ValueError(
            f"rank is {rank}, the init prompt has {shape[2]}; set rank={shape[2]}, or source_task='shared'"
        )
    if source == "each" and shape[0] != num_tasks:
        raise ValueError(f"num_tasks is {num_tasks}, the init prompt has {shape[0]}; source_task='each' needs as many")


def _check_count(cols: tuple[int, ...], count: Any) -> None:
    if len(cols) != 3 or not isinstance(count, int) or cols[1] not in (count, 2 * count):
        raise CheckpointError(
            f"the adapter says {count!r} virtual tokens, and prefix_task_cols has the shape {cols}; "
            "expected (tasks, tokens, rank)"
        )
