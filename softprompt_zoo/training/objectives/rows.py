"""The protocol of tokenized rows, and padding."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

IGNORED = -100
"""Label that transformers' losses skip."""


class TokenRow(Protocol):
    """A tokenized example."""

    @property
    def ids(self) -> list[int]:
        """All tokens of the row, which the model needs to have."""

    def __len__(self) -> int:
        """Return the number of tokens of the row, to compare with `--max-length`."""


R = TypeVar("R", bound=TokenRow)
"""A tokenized example."""


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False) -> dict[str, Tensor]:
    """Pad rows of ids to one length.

    Args:
        rows: The ids of each row.
        pad_id: Id of the padding token.
        left: Whether to pad on the left, as generation needs.

    Returns:
        `input_ids` and `attention_mask`, each `(rows, length)`.
    """
    length = max(map(len, rows))

    def padded(row: Sequence[int], filler: int) -> list[int]:
        pads = [filler] * (length - len(row))
        return [*pads, *row] if left else [*row, *pads]

    ids = [padded(row, pad_id) for row in rows]
    mask = [padded([1] * len(row), 0) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
