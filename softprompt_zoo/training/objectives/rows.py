"""What every tokenized row offers, and how rows of token ids are padded."""

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
        """Every token of the row that the model has to know."""

    def __len__(self) -> int:
        """Return how many tokens the row takes, to compare with `--max-length`."""


R = TypeVar("R", bound=TokenRow)
"""A tokenized example."""


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False) -> dict[str, Tensor]:
    """Pad rows of ids to one length.

    Args:
        rows: The ids of each row.
        pad_id: What to fill up with.
        left: Whether to fill up in front, as generation needs it.

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
