"""Records attention weights of the prompts' columns, which the outputs of a prompted model do not include.

This is another base implementation: the model's eager attention, which sums the weights of the prompts' columns while
a recording is active. The recording is a context variable, as it belongs to one thread and one call without gradients.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Bool, Float, Shaped
from softprompt_zoo.sites.reach.attention_interface import register_base
from softprompt_zoo.sites.reach.implementations import PREFIX, eager_function
from softprompt_zoo.sites.reach.marks import Mark, mark_of
from softprompt_zoo.sites.site import AttentionLayer

RECORDED = "recorded_eager"
"""Name of the base implementation."""
RECORDED_PREFIX = PREFIX + RECORDED


@dataclasses.dataclass(frozen=True)
class Columns:
    """What to read at one site."""

    columns: int
    """Number of the prompts' columns, which come before the text's."""
    first_query: int
    """Number of queries before the text, which are virtual positions."""
    is_text: Bool[Tensor, "rows length"]
    """Which of the queries after those are text rather than padding."""


@dataclasses.dataclass
class AttentionRecording:
    """Mean weights of the prompts' columns, layer by layer, while it is active."""

    asked: Mapping[str, Columns]
    """Site name to what to read there; other sites are not read."""
    calls: dict[int, tuple[Mark, list[Float[Tensor, " columns"]]]] = dataclasses.field(default_factory=dict)
    """By the id of an attention module, its mark and the results of its calls, in order."""

    def shares(self, extra: Mapping[AttentionLayer, int]) -> dict[str, Float[Tensor, "layers columns"]]:
        """Return the share of each of the prompts' columns.

        Args:
            extra: Number of calls of a layer after the one that is read: those of gated tokens.

        Returns:
            By site, a mean over heads and the text's tokens.
        """
        found: dict[AttentionLayer, Tensor] = {}
        for mark, calls in self.calls.values():
            end = len(calls)
            # Layers that share a module call it in turn; earlier passes do not count.
            for place in reversed(mark.sites):
                end -= 1 + extra.get(place, 0)
                found[place] = calls[end]
        sites = dict.fromkeys(place.name for place in sorted(found))
        return {site: torch.stack([found[place] for place in sorted(found) if place.name == site]) for site in sites}


_RECORDING: contextvars.ContextVar[AttentionRecording | None] = contextvars.ContextVar(
    "softprompt_recording", default=None
)


@contextlib.contextmanager
def recording(asked: Mapping[str, Columns]) -> Iterator[AttentionRecording]:
    """Record the weights of models that run on `RECORDED`.

    Args:
        asked: Site name to what to read there.

    Yields:
        The recording.
    """
    found = AttentionRecording(asked)
    token = _RECORDING.set(found)
    try:
        yield found
    finally:
        _RECORDING.reset(token)


def _recorded_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads length head_dim"],
    key: Float[Tensor, "rows kv_heads key_length head_dim"],
    value: Float[Tensor, "rows kv_heads key_length value_dim"],
    attention_mask: Shaped[Tensor, "..."] | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows length heads value_dim"], Float[Tensor, "..."] | None]:
    """Call the model's eager function, and read its weights."""
    output, weights = eager_function(module)(module, query, key, value, attention_mask, **kwargs)
    found, mark = _RECORDING.get(), mark_of(module)
    if found is None or mark is None:
        return output, weights
    site = mark.sites[0].name
    if site in found.asked:
        if weights is None:
            raise UnsupportedError(f"{type(module).__name__} returns no attention weights; leave inputs out")
        asked = found.asked[site]
        found.calls.setdefault(id(module), (mark, []))[1].append(_read(weights, asked))
    return output, weights


def _read(weights: Float[Tensor, "rows heads _ _"], asked: Columns) -> Float[Tensor, " {asked.columns}"]:
    shown = weights[..., asked.first_query :, : asked.columns].float()
    if shown.shape[0] != asked.is_text.shape[0] or shown.shape[2] != asked.is_text.shape[1]:
        return shown.new_zeros(asked.columns)  # a pass over only virtual tokens or gated ones, which is not read
    shares = shown.mean(dim=1)[asked.is_text.to(shown.device)].mean(dim=0)
    return shares if shares.shape[0] == asked.columns else shares.new_zeros(asked.columns)


AttentionInterface.register(RECORDED, _recorded_attention)
register_base(RECORDED, masks_of="eager")
