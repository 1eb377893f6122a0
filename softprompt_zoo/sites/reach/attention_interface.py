"""Adds keys and values of virtual tokens through transformers' attention interface.

One function per base implementation prepends a layer's prompt to its keys and values and extends the mask
and position bias. Its state arrives as a forward keyword: module attributes or context variables caused
wrong gradients under checkpointing, and cross-talk between threads.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.shapes import Bool, Float, Shaped
from softprompt_zoo.sites.batch import layer_prompt
from softprompt_zoo.sites.branches import add_branches
from softprompt_zoo.sites.gates import Attention, Keys, Queries, Values, add_gated
from softprompt_zoo.sites.reach import block_masks
from softprompt_zoo.sites.reach.implementations import IMPLEMENTATIONS, PREFIX, eager_function
from softprompt_zoo.sites.reach.marks import MARK, Mark
from softprompt_zoo.sites.reach.masks import (
    additive,
    both,
    check_flex,
    in_window,
    of_rows,
    seen_by_rows,
    weighed,
    with_scores,
)
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.state import CallState, KeyValueRecording, SiteState


class MaskBasis(NamedTuple):
    """What an extended mask depends on, besides the text's mask: layers of one call for which it is equal share it."""

    base: str
    """transformers' name of the base implementation."""
    site: str
    window: int | None
    length: int
    """Queries of the layer."""
    key_length: int
    """Keys of the text."""
    is_causal: bool
    """Whether a missing mask means a causal one."""


def _prompt_attention(
    base: str,
    module: nn.Module,
    query: Queries,
    key: Keys,
    value: Values,
    attention_mask: Shaped[Tensor, "..."] | BlockMask | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows length heads value_dim"], Float[Tensor, "..."] | None]:
    """Attend to the layer's prompt and to the text; without a prompt, this is the base function."""
    forward = _base_function(base, module)
    state = kwargs.pop(STATE_KEYWORD, None)
    site = None if state is None else _calling_site(module, state)
    if isinstance(state, KeyValueRecording) and site is not None:
        state.keys[site], state.values[site] = key, value
        if state.is_alone:
            return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None
        state = state.prior
    if state is None or site is None:
        return forward(module, query, key, value, attention_mask, **kwargs)
    prompt = state.sites.get(site.name)
    arguments = (module, query, key, value, attention_mask)
    if prompt is None:
        output, weights = forward(*arguments, **kwargs)
    else:
        output, weights = _with_prompt(base, forward, prompt, state, site, arguments, {**kwargs})
    if state.gated or state.branches:
        output = _with_additions(forward, state, site, module, query, output, kwargs)
    return output, weights


def _with_additions(
    forward: Attention,
    state: CallState,
    site: AttentionLayer,
    module: nn.Module,
    query: Queries,
    output: Float[Tensor, "rows length heads value_dim"],
    kwargs: dict[str, Any],
) -> Float[Tensor, "rows length heads value_dim"]:
    """Add the results of gated prompts and branches to that of the text's softmax."""
    for part in state.gated.get(site.name, ()):
        added = add_gated(part, site.layer, forward, module, query, state.rows, kwargs)
        output = output if added is None else output + added
    return add_branches(state.branches, state.rows, site, query, state.hidden, output)


def _calling_site(module: nn.Module, state: CallState | KeyValueRecording) -> AttentionLayer | None:
    """Return the calling layer; layers that share a module call it in turn. `None` if the module is not marked."""
    mark: Mark | None = getattr(module, MARK, None)
    if mark is None:
        return None
    if len(mark.sites) == 1:
        return mark.sites[0]
    visit = state.visits.get(id(module), 0)
    state.visits[id(module)] = visit + 1
    return mark.sites[visit]


def _with_prompt(
    base: str,
    forward: Attention,
    prompt: SiteState,
    state: CallState,
    site: AttentionLayer,
    arguments: tuple[nn.Module, Queries, Keys, Values, Shaped[Tensor, "..."] | BlockMask | None],
    kwargs: dict[str, Any],
) -> tuple[Float[Tensor, "rows length heads value_dim"], Float[Tensor, "..."] | None]:
    module, query, key, value, attention_mask = arguments
    is_causal = _is_causal(base, module, kwargs)
    length = query.shape[2]
    if attention_mask is None and is_causal and 1 < length < key.shape[2]:
        # Prefill of an empty static cache: the base function would slice here, before our keys are added.
        key, value, kwargs = key[:, :, :length], value[:, :, :length], _with_short_bias(kwargs, length)
    rows = None if state.is_in_order else state.rows
    prompt_keys, prompt_values = layer_prompt(prompt, rows, site.layer, query.shape[0])
    window = None if site.name == "cross" else vars(module)[MARK].window
    basis = MaskBasis(base, site.name, window, length, key.shape[2], is_causal)
    mask = shared_mask(prompt, state, query, attention_mask, basis)
    if prompt.scores is not None:
        mask = with_scores(mask, prompt.scores[site.layer], state, query, key.shape[2])
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = _extend_bias(kwargs["position_bias"], state, site, prompt_keys.shape[2])
    key = torch.cat([prompt_keys.to(key), key], dim=2)
    value = torch.cat([prompt_values.to(value), value], dim=2)
    output, weights = forward(module, query, key, value, mask, **kwargs)
    # Instead of weights, flex attention returns the logarithm of their sum, which has no axis of keys.
    return output, weights if weights is None or weights.ndim < 4 else weights[..., prompt_keys.shape[2] :]


def _with_short_bias(kwargs: dict[str, Any], length: int) -> dict[str, Any]:
    bias = kwargs.get("position_bias")
    return kwargs if bias is None else {**kwargs, "position_bias": bias[..., :length]}


def _is_causal(base: str, module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Return whether a missing mask means that later tokens are hidden, which is not so in the eager function."""
    given = kwargs.get("is_causal")
    return base != "eager" and bool(getattr(module, "is_causal", True) if given is None else given)


def _base_function(base: str, module: nn.Module) -> Attention:
    return eager_function(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]


def _extend_bias(
    bias: Float[Tensor, "#rows heads length key_length"], state: CallState, site: AttentionLayer, tokens: int
) -> Float[Tensor, "#rows heads length positions"]:
    """Add the bias of the prompt's columns: relative positions in a decoder, none elsewhere."""
    if state.bias is None or site.name == "cross":
        return functional.pad(bias, (tokens, 0))
    of_prompt = state.bias[site.layer].to(bias)
    rows = max(bias.shape[0], of_prompt.shape[0])
    return torch.cat([of_prompt.expand(rows, -1, -1, -1), bias.expand(rows, -1, -1, -1)], dim=-1)


def shared_mask(prompt: SiteState, state: CallState, query: Queries, attention_mask: Any, basis: MaskBasis) -> Any:
    """Extend the text's mask over the prompt, once for all layers that share it.

    Args:
        prompt: The state of the site.
        state: The state of the call, which keeps the result.
        query: The queries.
        attention_mask: The text's mask, in the form that the base implementation takes; or `None`.
        basis: What the result depends on besides the text's mask.

    Returns:
        The mask, in the same form; `None` if everything is seen.

    Raises:
        UnsupportedError: If this form cannot express the prompt's weight.
    """
    for known, text_mask, extended in state.masks:
        if known == basis and text_mask is attention_mask:
            return extended
    key_length = basis.key_length
    tokens = prompt.keys[0].shape[2]
    visible = visible_to(prompt, state, basis.window, basis.length, query.shape[0])
    mask: Any
    if isinstance(attention_mask, BlockMask):
        check_flex(prompt)
        mask = block_masks.extend(attention_mask, visible, query.shape[0], query.shape[2], key_length, tokens)
    else:
        if prompt.weight is not None:
            visible = weighed(visible, prompt.weight, state, query)
        mask = extend_mask(attention_mask, visible, query, key_length, tokens, basis.is_causal)
        if mask is not None and mask.dtype == torch.bool and basis.base != "sdpa":
            mask = additive(mask, query.dtype)
    state.masks.append((basis, attention_mask, mask))
    return mask


def visible_to(
    prompt: SiteState, state: CallState, window: int | None, length: int, rows: int
) -> Bool[Tensor, "#rows 1 #length tokens"] | None:
    """Return which virtual tokens each of the last `length` queries sees.

    Args:
        prompt: The state of the site.
        state: The state of the call, with the positions of all its queries.
        window: Width of the sliding window; `None` if there is none.
        length: Queries of the layer: a model may compute its last layers only for the last tokens.
        rows: Rows of the batch.

    Returns:
        Whether each query sees each token; `None` if all see all.
    """
    visible = None if prompt.present is None else of_rows(prompt.present, state)
    if prompt.mask is not None:
        visible = both(visible, seen_by_rows(prompt.mask, state, rows))
    if window is None:
        return visible
    return both(visible, in_window(prompt, state, window, length))


def extend_mask(
    mask: Shaped[Tensor, "#rows #heads #length {key_length}"] | None,
    visible: Shaped[Tensor, "#rows 1 #length {tokens}"] | None,
    query: Queries,
    key_length: int,
    tokens: int,
    is_causal: bool,
) -> Shaped[Tensor, "#rows #heads #length {tokens+key_length}"] | None:
    """Put the prompt's columns in front of a mask.

    Args:
        mask: The text's mask, boolean or additive; or `None`.
        visible: From `visible_to`; or floating-point numbers added to the prompt's scores.
        query: The queries.
        key_length: Keys of the text.
        tokens: Virtual tokens.
        is_causal: Whether a missing mask means a causal one.

    Returns:
        The mask over `tokens + key_length` columns; `None` if everything is seen.
    """
    length = query.shape[2]
    if mask is None:
        if is_causal and length > 1:
            text = torch.ones(length, key_length, dtype=torch.bool, device=query.device)
            mask = text.tril(key_length - length)[None, None]
        elif visible is None:
            return None
        else:
            mask = torch.ones(1, 1, 1, key_length, dtype=torch.bool, device=query.device)
    if visible is None:
        visible = torch.ones(1, 1, 1, tokens, dtype=torch.bool, device=query.device)
    if visible.dtype != torch.bool and mask.dtype == torch.bool:
        mask = additive(mask, visible.dtype)
    elif visible.dtype == torch.bool and mask.dtype != torch.bool:
        visible = additive(visible, mask.dtype)
    rows, width = max(mask.shape[0], visible.shape[0]), max(mask.shape[2], visible.shape[2])
    visible = visible.expand(rows, mask.shape[1], width, tokens)
    return torch.cat([visible, mask.expand(rows, -1, width, -1)], dim=-1)


def register_base(base: str, masks_of: str) -> None:
    """Register the attention function that adds prompts to a base implementation.

    Args:
        base: transformers' name of the implementation.
        masks_of: Name of the implementation whose masks it uses.
    """
    AttentionInterface.register(PREFIX + base, functools.partial(_prompt_attention, base))
    # The base's own mask function: without a prompt, the model must stay bit-identical.
    AttentionMaskInterface.register(PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[masks_of])


for implementation in IMPLEMENTATIONS:
    register_base(implementation, implementation)
