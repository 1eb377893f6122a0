"""The parts of a mask over a prompt's columns: windows, rows, weights and scores."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Bool, Float, Shaped
from softprompt_zoo.sites.gates import Queries
from softprompt_zoo.sites.state import CallState, SiteState


def check_flex(prompt: SiteState) -> None:
    """Refuse additions to the scores of flex attention, whose masks are boolean."""
    if prompt.weight is not None:
        raise UnsupportedError(
            'flex attention cannot apply a prompt\'s weight; call model.set_attn_implementation("sdpa"), or '
            "give every prompt the weight 1"
        )
    if prompt.scores is not None:
        raise UnsupportedError(
            'flex attention cannot apply a prompt\'s scores; call model.set_attn_implementation("sdpa"), or choose '
            "a method without scores"
        )


def with_scores(
    mask: Any,
    scores: Float[Tensor, "combinations kv_heads tokens 1"],
    state: CallState,
    query: Queries,
    key_length: int,
) -> Float[Tensor, "#rows heads #length positions"]:
    """Add a layer's scores to the prompt's columns of a mask. The result is not kept: it differs for each layer.

    Args:
        mask: From `shared_mask`.
        scores: The layer's scores.
        state: The state of the call.
        query: The queries; several of their heads share the scores of one key-value head.
        key_length: Keys of the text.

    Returns:
        The mask, `(rows, heads, length or 1, positions)`, through which gradients flow to the scores.
    """
    tokens, least = scores.shape[2], torch.finfo(query.dtype).min
    if mask is None:
        mask = query.new_zeros(1, 1, 1, tokens + key_length)
    elif mask.dtype == torch.bool:
        mask = additive(mask, query.dtype)
    own = (scores if state.rows is None else scores[state.rows])[..., 0]
    of_heads = own.repeat_interleave(query.shape[1] // own.shape[1], dim=1)[:, :, None].to(mask)
    shown = (mask[..., :tokens] + of_heads).clamp(min=least)
    return torch.cat([shown, mask[..., tokens:].expand(*shown.shape[:3], -1)], dim=-1)


def in_window(
    prompt: SiteState, state: CallState, window: int, length: int
) -> Bool[Tensor, "#rows 1 #length tokens"] | None:
    """Return which virtual tokens are in the sliding window of each query; `None` for all."""
    if state.positions is None:
        return None
    columns = torch.arange(prompt.keys[0].shape[2], device=state.positions.device)
    seen = columns > state.positions[:, None, -length:, None] - window
    return seen if prompt.always_visible is None else seen | of_rows(prompt.always_visible, state)


def both(
    first: Bool[Tensor, "#rows 1 #length tokens"] | None, second: Bool[Tensor, "#rows 1 #length tokens"] | None
) -> Bool[Tensor, "#rows 1 #length tokens"] | None:
    """Return the conjunction of two masks; `None` is true everywhere."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def of_rows(values: Shaped[Tensor, "combinations tokens"], state: CallState) -> Shaped[Tensor, "#rows 1 1 tokens"]:
    """Return the value of each token that the rows see, in the shape of a mask."""
    return (values if state.rows is None else values[state.rows])[:, None, None, :]


def seen_by_rows(
    mask: Bool[Tensor, "combinations text_rows tokens"], state: CallState, rows: int
) -> Bool[Tensor, "{rows} 1 1 tokens"]:
    """Return which tokens of its combination each row sees; beams repeat each row of the text in place."""
    given = mask.shape[1]
    if rows % given:
        raise ValueError(
            f"a prompt's mask has {given} rows for a batch of {rows}; expected one for each row of the text"
        )
    spread = mask.repeat_interleave(rows // given, dim=1)
    own = spread[0] if state.rows is None else spread[state.rows, torch.arange(rows, device=mask.device)]
    return own[:, None, None, :]


def weighed(
    visible: Bool[Tensor, "#rows 1 #length tokens"] | None,
    weight: Float[Tensor, "_ tokens"],
    state: CallState,
    query: Queries,
) -> Float[Tensor, "#rows 1 #length tokens"]:
    """Turn weights into additions to the scores: a factor on a share is its logarithm on the score."""
    least = torch.finfo(query.dtype).min
    wide = torch.promote_types(weight.dtype, query.dtype)
    scores = of_rows(weight, state).to(wide).log().clamp(min=least).to(query.dtype)
    return scores if visible is None else torch.where(visible, scores, least)


def additive(mask: Bool[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Turn a boolean mask into additions to the scores."""
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
