"""The keys and values of one combination of prompts at one site, and what is known of each of its tokens."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Bool, Float
from softprompt_zoo.tokens.placement import Placement


@dataclasses.dataclass
class Segment:
    """The keys and values of one combination at one site."""

    keys: list[Float[Tensor, "kv_heads tokens head_dim"]]
    """Per layer."""
    values: list[Float[Tensor, "kv_heads tokens value_dim"]]
    dropout: list[float]
    """Per token."""
    always_visible: list[bool]
    """Per token."""
    weight: list[float]
    """Per token."""
    scores: list[Float[Tensor, "kv_heads tokens 1"]] | None = None
    """Per layer, what is added to the scores of attention; `None` for nothing."""
    mask: Bool[Tensor, "rows tokens"] | None = None
    """Which of the tokens each row of the text sees; `None` if every row sees all."""

    @property
    def length(self) -> int:
        """Virtual tokens."""
        return len(self.dropout)

    @classmethod
    def of(cls, placement: Placement, site: str) -> "Segment | None":
        """Take one placement's tokens at one site; `None` if it has none there, or gated ones."""
        tokens = placement.tokens.at(site)
        if tokens is None:
            return None
        keys: list[Any] = [*tokens.keys]  # in every layer, as they have no gates
        values: list[Any] = [*tokens.values]
        scores = None if tokens.scores is None else [layer[..., None] for layer in tokens.scores]
        return cls(keys, values, *per_token(placement, keys[0].shape[1]), scores, placement.mask)

    def __add__(self, other: "Segment") -> "Segment":
        has_scores = self.scores is not None or other.scores is not None
        has_mask = self.mask is not None or other.mask is not None
        return Segment(
            _joined(self.keys, other.keys),
            _joined(self.values, other.values),
            self.dropout + other.dropout,
            self.always_visible + other.always_visible,
            self.weight + other.weight,
            _joined(self._every_score(), other._every_score()) if has_scores else None,
            _joined_rows(self.whole_mask(), other.whole_mask()) if has_mask else None,
        )

    def whole_mask(self) -> Bool[Tensor, "#rows tokens"]:
        """Return which of the tokens each row sees, where all see all a single row."""
        if self.mask is not None:
            return self.mask
        return torch.ones(1, self.length, dtype=torch.bool, device=self.keys[0].device)

    def _every_score(self) -> list[Float[Tensor, "kv_heads tokens 1"]]:
        """Return what is added to the scores of attention, zeros for nothing."""
        return [key.new_zeros(*key.shape[:2], 1) for key in self.keys] if self.scores is None else self.scores


def _joined(
    first: list[Float[Tensor, "kv_heads tokens _"]], second: list[Float[Tensor, "kv_heads more _"]]
) -> list[Float[Tensor, "kv_heads tokens+more _"]]:
    return [torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)]


def _joined_rows(
    first: Bool[Tensor, "#rows tokens"], second: Bool[Tensor, "#rows more"]
) -> Bool[Tensor, "#rows tokens+more"]:
    rows = max(first.shape[0], second.shape[0])
    return torch.cat([first.expand(rows, -1), second.to(first.device).expand(rows, -1)], dim=1)


def per_token(placement: Placement, count: int) -> tuple[list[float], list[bool], list[float]]:
    """Return dropout, visibility and weight of each of a placement's tokens."""
    return [placement.dropout] * count, [placement.always_visible] * count, [placement.weight] * count
