"""The mask over a prompt's columns and the text's: which virtual tokens a query sees, and by what weight."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Bool, Float, Shaped
from softprompt_zoo.sites.gates import Queries
from softprompt_zoo.sites.reach import block_masks
from softprompt_zoo.sites.state import CallState, SiteState


def shared_mask(
    prompt: SiteState, state: CallState, query: Queries, attention_mask: Any, depends_on: tuple[Any, ...]
) -> Any:
    """Extend the text's mask over the prompt, once for all layers that share it.

    Args:
        prompt: What the site shows.
        state: The state of the call, which keeps what was made.
        query: The queries.
        attention_mask: The text's mask, of the form that the base implementation takes; or `None`.
        depends_on: Base implementation, site, window, queries, keys of the text, and whether a missing mask stands for
            a causal one.

    Returns:
        The mask, of the same form; `None` if everything is seen.

    Raises:
        UnsupportedError: If the form has no place for the prompt's weight.
    """
    for known, text_mask, extended in state.masks:
        if known == depends_on and text_mask is attention_mask:
            return extended
    base, _, window, length, key_length, is_causal = depends_on
    tokens = prompt.keys[0].shape[2]
    visible = visible_to(prompt, state, window, length, query.shape[0])
    mask: Any
    if isinstance(attention_mask, BlockMask):
        _check_flex(prompt)
        mask = block_masks.extend(attention_mask, visible, query.shape[0], query.shape[2], key_length, tokens)
    else:
        if prompt.weight is not None:
            visible = _weighed(visible, prompt.weight, state, query)
        mask = extend_mask(attention_mask, visible, query, key_length, tokens, is_causal)
        if mask is not None and mask.dtype == torch.bool and base != "sdpa":
            mask = _additive(mask, query.dtype)
    state.masks.append((depends_on, attention_mask, mask))
    return mask


def _check_flex(prompt: SiteState) -> None:
    """Refuse what is added to the scores of flex attention, whose masks say yes or no."""
    if prompt.weight is not None:
        raise UnsupportedError(
            'flex attention has no place for a prompt\'s weight; call model.set_attn_implementation("sdpa"), or '
            "give every prompt the weight 1"
        )
    if prompt.scores is not None:
        raise UnsupportedError(
            'flex attention has no place for a prompt\'s scores; call model.set_attn_implementation("sdpa"), or choose '
            "a method without scores"
        )


def with_scores(
    mask: Shaped[Tensor, "#rows #heads #length positions"] | None,
    scores: Float[Tensor, "combinations kv_heads tokens 1"],
    state: CallState,
    query: Queries,
    key_length: int,
) -> Float[Tensor, "#rows heads #length positions"]:
    """Add a layer's scores to the prompt's columns of a mask. It is not kept: each layer has its own.

    Args:
        mask: From `shared_mask`.
        scores: Of every combination.
        state: The state of the call.
        query: The queries, of which several heads share those of one key-value head.
        key_length: Keys of the text.

    Returns:
        The mask, for each head; gradients flow to the scores.
    """
    tokens, least = scores.shape[2], torch.finfo(query.dtype).min
    if mask is None:
        mask = query.new_zeros(1, 1, 1, tokens + key_length)
    elif mask.dtype == torch.bool:
        mask = _additive(mask, query.dtype)
    of_rows = (scores if state.rows is None else scores[state.rows])[..., 0]
    of_heads = of_rows.repeat_interleave(query.shape[1] // of_rows.shape[1], dim=1)[:, :, None].to(mask)
    shown = (mask[..., :tokens] + of_heads).clamp(min=least)
    return torch.cat([shown, mask[..., tokens:].expand(*shown.shape[:3], -1)], dim=-1)


def visible_to(
    prompt: SiteState, state: CallState, window: int | None, length: int, rows: int
) -> Bool[Tensor, "#rows 1 #length tokens"] | None:
    """Return which virtual tokens each of the last `length` queries sees.

    Args:
        prompt: What the site shows.
        state: The state of the call, with the positions of all its queries.
        window: Width of the sliding window; `None` without one.
        length: Queries of the layer: a model may compute its last layers for the last tokens alone.
        rows: Rows of the batch.

    Returns:
        Whether it does; `None` for all.
    """
    visible = None if prompt.present is None else _of_rows(prompt.present, state)
    if prompt.mask is not None:
        visible = _both(visible, _seen_by_rows(prompt.mask, state, rows))
    return visible if window is None else _both(visible, _in_window(prompt, state, window, length))


def _in_window(
    prompt: SiteState, state: CallState, window: int, length: int
) -> Bool[Tensor, "#rows 1 #length tokens"] | None:
    """Return which virtual tokens are in the sliding window of each query; `None` for all."""
    if state.positions is None:
        return None
    columns = torch.arange(prompt.keys[0].shape[2], device=state.positions.device)
    in_window = columns > state.positions[:, None, -length:, None] - window
    return in_window if prompt.always_visible is None else in_window | _of_rows(prompt.always_visible, state)


def _both(
    first: Bool[Tensor, "#rows 1 #length tokens"] | None, second: Bool[Tensor, "#rows 1 #length tokens"] | None
) -> Bool[Tensor, "#rows 1 #length tokens"] | None:
    """Return what is true in both; `None` is true everywhere."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def _of_rows(values: Shaped[Tensor, "combinations tokens"], state: CallState) -> Shaped[Tensor, "#rows 1 1 tokens"]:
    """Return a value for each token that the rows see, in the form of a mask."""
    return (values if state.rows is None else values[state.rows])[:, None, None, :]


def _seen_by_rows(
    mask: Bool[Tensor, "combinations text_rows tokens"], state: CallState, rows: int
) -> Bool[Tensor, "{rows} 1 1 tokens"]:
    """Return which tokens each row sees of its combination; beams repeat the rows of the text, each in its place."""
    given = mask.shape[1]
    if rows % given:
        raise ValueError(
            f"a prompt's mask has {given} rows for a batch of {rows}; expected one for each row of the text"
        )
    spread = mask.repeat_interleave(rows // given, dim=1)
    own = spread[0] if state.rows is None else spread[state.rows, torch.arange(rows, device=mask.device)]
    return own[:, None, None, :]


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
        visible: From `visible_to`; or what is added to the prompt's scores, in floating point.
        query: The queries.
        key_length: Keys of the text.
        tokens: Virtual tokens.
        is_causal: Whether a missing mask stands for a causal one.

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
        mask = _additive(mask, visible.dtype)
    elif visible.dtype == torch.bool and mask.dtype != torch.bool:
        visible = _additive(visible, mask.dtype)
    rows, width = max(mask.shape[0], visible.shape[0]), max(mask.shape[2], visible.shape[2])
    visible = visible.expand(rows, mask.shape[1], width, tokens)
    return torch.cat([visible, mask.expand(rows, -1, width, -1)], dim=-1)


def _weighed(
    visible: Bool[Tensor, "#rows 1 #length tokens"] | None,
    weight: Float[Tensor, "_ tokens"],
    state: CallState,
    query: Queries,
) -> Float[Tensor, "#rows 1 #length tokens"]:
    """Turn weights into what is added to the scores: a factor on a share is its logarithm on the score."""
    least = torch.finfo(query.dtype).min
    wide = torch.promote_types(weight.dtype, query.dtype)
    scores = _of_rows(weight, state).to(wide).log().clamp(min=least).to(query.dtype)
    return scores if visible is None else torch.where(visible, scores, least)


def _additive(mask: Bool[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
