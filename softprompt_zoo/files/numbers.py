"""Which numbers a prompt's file may hold: finite floating-point ones."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from softprompt_zoo.errors import CheckpointError

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What trained numbers may be stored in."""


def check_floating(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse tensors that no parameter can take as they are.

    Args:
        tensors: What a file holds, by name.
        where: The file, or the prompt in it, for the message.

    Raises:
        CheckpointError: If one holds other than finite floating-point numbers.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
            raise CheckpointError(f"{where}: tensor {name!r} is of {tensor.dtype}; expected one of {known}")
    check_finite(tensors, where)


def check_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse NaN and infinity.

    Args:
        tensors: What a file holds, by name.
        where: The file, or the prompt in it, for the message.

    Raises:
        CheckpointError: If one holds such a number.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            wrong = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f"{where}: tensor {name!r} holds NaN or infinity ({wrong} of {tensor.numel()} numbers); its training "
                "failed or the file is damaged; take another copy, or train again"
            )


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity; integers never do."""
    if not tensor.is_floating_point() or tensor.dtype not in FLOATING:
        return True
    # The sum is quick and never finite where a number is not; a large one may overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
