"""The cache that a model sees during one call: the prompt's keys and values in front of the text's.

The view stores only the text. In each row, the prompt is right before the text, after left padding, so that ALiBi and
local windows see the distances that real tokens would have.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from softprompt_zoo.shapes import Float, Int
from softprompt_zoo.sites.batch import layer_prompt
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.state import CallState, KeyValueRecording, SiteState


class CacheView(Cache):
    """The cache that a model sees during one call."""

    def __init__(
        self, inner: Cache | None, state: CallState | None, recording: KeyValueRecording | None, site: str
    ) -> None:
        super().__init__(layers=[])
        self.inner = inner
        """The cache of the text; `None` if nothing is cached."""
        self.order: Int[Tensor, "rows positions"] | None = None
        """Column of prompt and text at each place; `None` if the text simply follows
        the prompt."""
        self._state = state
        self._recording = recording
        self._site = site

    @property
    def prompt(self) -> SiteState | None:
        """The prompt; read on each use, because checkpointing replaces its tensors."""
        return None if self._state is None else self._state.sites.get(self._site)

    @property
    def tokens(self) -> int:
        """Number of virtual tokens in the longest row."""
        return 0 if self.prompt is None else self.prompt.keys[0].shape[2]

    def update(
        self,
        key_states: Float[Tensor, "rows kv_heads length head_dim"],
        value_states: Float[Tensor, "rows kv_heads length value_dim"],
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "rows kv_heads key_length head_dim"], Float[Tensor, "rows kv_heads key_length value_dim"]]:
        """Store the text's keys and values, and return them after the prompt's."""
        site = AttentionLayer(self._site, layer_idx)
        if self._recording is not None:
            self._recording.keys[site], self._recording.values[site] = key_states, value_states
        if self.inner is not None:
            key_states, value_states = self.inner.update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.prompt is None or self._state is None:
            return key_states, value_states
        rows, count = self._state.rows, key_states.shape[0]
        keys, values = layer_prompt(self.prompt, rows, layer_idx, count)
        return self._arranged(keys.to(key_states), key_states), self._arranged(values.to(value_states), value_states)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Return how many positions are taken, including the prompt's."""
        return self.tokens + (0 if self.inner is None else self.inner.get_seq_length(layer_idx))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many columns the mask needs, and where the first one is."""
        length, offset = (query_length, 0) if self.inner is None else self.inner.get_mask_sizes(query_length, layer_idx)
        return self.tokens + length, offset

    def text_only(self, weights: Float[Tensor, "rows heads _ _"]) -> Float[Tensor, "rows heads _ _"]:
        """Remove the prompt's columns from attention weights."""
        if self.order is None:
            return weights[..., self.tokens :]
        columns = self.order.argsort(dim=1)[:, None, None, self.tokens :]
        return weights.gather(-1, columns.expand(*weights.shape[:-1], -1))

    def _arranged(
        self,
        prompt: Float[Tensor, "rows kv_heads tokens head_dim"],
        text: Float[Tensor, "rows kv_heads length head_dim"],
    ) -> Float[Tensor, "rows kv_heads positions head_dim"]:
        joined = torch.cat([prompt, text], dim=2)
        if self.order is None:
            return joined
        return joined.gather(2, self.order[:, None, :, None].expand(-1, joined.shape[1], -1, joined.shape[3]))
