"""Adds keys and values to attention that does not use transformers' attention interface.

Two kinds of encoders compute their scores themselves: DeBERTa's are disentangled, MPNet's have a relative bias shared
by all layers. Each function here does the same as the module's own forward, with the layer's prompt in front; virtual
tokens have no relative bias.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softprompt_zoo.backbone.lookup import has_parts, part_of
from softprompt_zoo.shapes import Float, Shaped
from softprompt_zoo.sites.batch import layer_prompt
from softprompt_zoo.sites.branches import add_branches
from softprompt_zoo.sites.gates import add_gated
from softprompt_zoo.sites.reach.attention_interface import extend_mask, visible_to
from softprompt_zoo.sites.reach.masks import with_scores
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.state import CallState, KeyValueRecording

SITE = "encoder"


def disentangled(
    module: Any,
    state: CallState | KeyValueRecording,
    layer: int,
    hidden_states: Float[Tensor, "rows length hidden"],
    attention_mask: Shaped[Tensor, "#rows 1 #length length"],
    output_attentions: bool = False,
    query_states: Float[Tensor, "rows length hidden"] | None = None,
    relative_pos: Shaped[Tensor, "..."] | None = None,
    rel_embeddings: Float[Tensor, "... hidden"] | None = None,
) -> tuple[Float[Tensor, "rows length hidden"], Float[Tensor, "rows heads length length"] | None]:
    """Do the same as `DisentangledSelfAttention.forward`, with a prompt.

    Args:
        module: The attention module.
        state: The state of this call.
        layer: Index of the layer.
        hidden_states: Hidden states of the text.
        attention_mask: Nonzero where a token is seen.
        output_attentions: Whether to return the weights.
        query_states: Input of the query projection; `None` for the hidden states.
        relative_pos: Relative positions.
        rel_embeddings: Their embeddings.

    Returns:
        Hidden states, and the weights of the text, or `None`.
    """
    heads = module.num_attention_heads
    query = _split(module.query_proj(hidden_states if query_states is None else query_states), heads)
    key, value = _split(module.key_proj(hidden_states), heads), _split(module.value_proj(hidden_states), heads)
    parts = 1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)
    scale = (query.shape[-1] * parts) ** 0.5
    bias = None
    if module.relative_attention:
        flat = (query.flatten(0, 1), key.flatten(0, 1))
        bias = module.disentangled_attention_bias(*flat, relative_pos, module.pos_dropout(rel_embeddings), parts)
        bias = bias.view(*query.shape[:3], -1)
    projected = query, key, value
    output, weights = _attend(module, state, layer, hidden_states, projected, bias, attention_mask.bool(), scale)
    return output, weights if output_attentions else None


def biased(
    module: Any,
    state: CallState | KeyValueRecording,
    layer: int,
    hidden_states: Float[Tensor, "rows length hidden"],
    attention_mask: Float[Tensor, "#rows 1 #length length"] | None = None,
    position_bias: Float[Tensor, "#rows heads length length"] | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows ..."], ...]:
    """Do the same as `MPNetSelfAttention.forward`, with a prompt.

    Args:
        module: The attention module.
        state: The state of this call.
        layer: Index of the layer.
        hidden_states: Hidden states of the text.
        attention_mask: Added to the scores.
        position_bias: Added to the scores.
        output_attentions: Whether to return the weights.
        **kwargs: Not used, as in the original.

    Returns:
        Hidden states `(rows, length, hidden)`, and, if requested, the text's weights `(rows, heads, length, length)`.
    """
    projected = [
        _split(project(hidden_states), module.num_attention_heads) for project in (module.q, module.k, module.v)
    ]
    scale = projected[0].shape[-1] ** 0.5
    output, weights = _attend(module, state, layer, hidden_states, projected, position_bias, attention_mask, scale)
    output = module.o(output)
    return (output, weights) if output_attentions else (output,)


class Kind(NamedTuple):
    """One kind of attention, recognized by its parts."""

    name: str
    """Name of the module in its layer's `attention`."""
    parts: tuple[str, ...]
    """Names of its parts."""
    key_projection: str
    """Name of the part that computes the keys."""
    attend: Callable[..., Any]
    """Function called in its place, with the module, the state and the layer as first arguments."""

    def is_in(self, attention: Any) -> bool:
        """Return whether a layer's `attention` has a module of this kind."""
        return has_parts(part_of(attention, self.name), *self.parts)


KINDS = (
    Kind("self", ("query_proj", "key_proj", "value_proj", "disentangled_attention_bias"), "key_proj", disentangled),
    Kind("attn", ("q", "k", "v", "o", "num_attention_heads"), "k", biased),
)
"""Those of DeBERTa-v2 and MPNet."""


def _attend(
    module: Any,
    state: CallState | KeyValueRecording,
    layer: int,
    hidden: Float[Tensor, "rows length hidden"],
    projected: Sequence[Float[Tensor, "rows heads length _"]],
    bias: Float[Tensor, "#rows heads length length"] | None,
    mask: Shaped[Tensor, "#rows 1 #length length"] | None,
    scale: float,
) -> tuple[Float[Tensor, "rows length width"], Float[Tensor, "rows heads length length"]]:
    """Attend to the layer's prompt and to the text."""
    query, key, value = projected
    if isinstance(state, KeyValueRecording):
        place = AttentionLayer(SITE, layer)
        state.keys[place], state.values[place] = key, value
    scores = query @ key.transpose(-1, -2) / scale
    scores = scores if bias is None else scores + bias
    call = state.prior if isinstance(state, KeyValueRecording) else state
    tokens = 0
    if call is not None and SITE in call.sites:
        prompt = call.sites[SITE]
        prompt_keys, prompt_values = (part.to(query) for part in layer_prompt(prompt, call.rows, layer, query.shape[0]))
        tokens = prompt_keys.shape[2]
        mask = extend_mask(
            mask, visible_to(prompt, call, None, query.shape[2], query.shape[0]), query, key.shape[2], tokens, False
        )
        if prompt.scores is not None:
            mask = with_scores(mask, prompt.scores[layer], call, query, key.shape[2])
        scores = torch.cat([query @ prompt_keys.transpose(-1, -2) / scale, scores], dim=-1)
        value = torch.cat([prompt_values, value], dim=2)
    weights = module.dropout(_masked(scores, mask).softmax(dim=-1))
    output = (weights @ value).transpose(1, 2)
    if call is not None:
        output = _with_gated(output, call, layer, module, query, scale)
        output = add_branches(call.branches, call.rows, AttentionLayer(SITE, layer), query, hidden, output)
    return output.flatten(2), weights[..., tokens:]


def _masked(
    scores: Float[Tensor, "rows heads length positions"], mask: Shaped[Tensor, "#rows #heads #length positions"] | None
) -> Float[Tensor, "rows heads length positions"]:
    if mask is None:
        return scores
    is_kept = mask.dtype == torch.bool
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if is_kept else scores + mask


def _with_gated(
    output: Float[Tensor, "rows length heads value_dim"],
    call: CallState,
    layer: int,
    module: Any,
    query: Float[Tensor, "rows heads length head_dim"],
    scale: float,
) -> Float[Tensor, "rows length heads value_dim"]:
    """Add the results of gated prompts."""
    forward = functools.partial(_plain_attention, scale)
    for part in call.gated.get(SITE, []):
        added = add_gated(part, layer, forward, module, query, call.rows, {})
        output = output if added is None else output + added
    return output


def _plain_attention(
    scale: float,
    module: Any,
    query: Float[Tensor, "rows heads length head_dim"],
    key: Float[Tensor, "rows heads key_length head_dim"],
    value: Float[Tensor, "rows heads key_length value_dim"],
    mask: Float[Tensor, "#rows #heads #length key_length"] | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows length heads value_dim"], None]:
    scores = query @ key.transpose(-1, -2) / scale
    scores = scores if mask is None else scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2), None


def _split(states: Float[Tensor, "rows length width"], heads: int) -> Float[Tensor, "rows {heads} length head_dim"]:
    """Split features into heads."""
    split: Tensor = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split
