"""The `soft_slots` argument of `forward` and `generate`: which virtual token is at each place of the text."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Int

EXPECTED = "expected integers of shape (rows, length), as made by zoo.encode: a virtual token's index, -1 for text"


def read_soft_slots(index: Any) -> Int[Tensor, "rows length"] | None:
    """Read the `soft_slots` argument of `forward` and `generate`.

    Args:
        index: The user's value, or `None`.

    Returns:
        The same value.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it has a wrong shape, or values other than integers.
    """
    if index is None:
        return None
    if not isinstance(index, Tensor):
        raise TypeError(f"soft_slots is {type(index).__name__}; {EXPECTED}")
    if index.ndim != 2 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"soft_slots has shape {tuple(index.shape)} and dtype {index.dtype}; {EXPECTED}")
    return index


def check_slots(index: Int[Tensor, "_ _"], rows: int, length: int, past: int = 0) -> None:
    """Check slots against their text.

    Args:
        index: The slots, as made by `zoo.encode`.
        rows: Rows of the text.
        length: Tokens of a row, including those in the cache.
        past: Tokens in the cache.

    Raises:
        ValueError: If the slots do not have the text's shape.
    """
    if index.shape != (rows, length):
        cached = f", {past} of them in the cache" if past else ""
        raise ValueError(
            f"soft_slots has shape {tuple(index.shape)} for {rows} rows of {length} tokens{cached}; give one entry "
            "for each token of the text, starting with the first, like attention_mask; -1 for text"
        )
