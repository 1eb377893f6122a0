"""Stacks the virtual tokens of all combinations, padded to the longest, and selects those of each row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.shapes import Bool, Float, Int, Shaped
from softprompt_zoo.sites.call import Call, Prefix, Segment
from softprompt_zoo.sites.state import SiteState


def join(first: Segment | None, second: Segment | None) -> Segment | None:
    """Concatenate two segments; `None` is an empty one."""
    return second if first is None else first if second is None else first + second


def segments_at(call: Call, site: str) -> list[Segment | None]:
    """Return the keys and values of each combination at a site."""
    segments: list[Segment | None] = []
    for combination in call.selection.combinations:
        joined: Segment | None = None
        for part in combination:
            own = Segment.of(call.placements[part], site)
            joined = own if joined is None else join(joined, own)
        segments.append(joined)
    return segments


def lengths(segments: Sequence[Segment | None]) -> list[int]:
    """Count the virtual tokens of each segment."""
    counts = []
    for segment in segments:
        counts.append(0 if segment is None else len(segment.dropout))
    return counts


def token_counts(call: Call, site: str) -> list[int]:
    """Count the virtual tokens that each combination has in front of a causal stack's text.

    Args:
        call: The prompts of this forward.
        site: The stack's self-attention.

    Returns:
        One count per combination.
    """
    return [
        sum([call.placements[part].tokens.columns(site) for part in parts]) for parts in call.selection.combinations
    ]


_NOTHING = Segment([], [], [], [], [])
"""The segment of a combination without tokens."""


def site_state(segments: Sequence[Segment | None], is_training: bool) -> SiteState | None:
    """Stack the segments of all combinations, padded to the longest.

    Args:
        segments: One per combination.
        is_training: Whether dropout is applied.

    Returns:
        The state of a site, or `None` if no combination has tokens there.
    """
    if len(segments) == 1:
        return None if segments[0] is None else _alone(segments[0], is_training)
    first = next((segment for segment in segments if segment is not None), None)
    if first is None:
        return None
    return _padded([segment or _NOTHING for segment in segments], first.keys[0].device, is_training)


def stacked(prefix: Prefix, is_training: bool) -> SiteState | None:
    """Stack the segments of a prefix, like `site_state`, once for all of its steps."""
    if not prefix.stacked:
        prefix.stacked = (site_state(prefix.segments, is_training),)
    state: SiteState | None = prefix.stacked[0]
    return state


def _padded(segments: Sequence[Segment], device: torch.device, is_training: bool) -> SiteState:
    """Return the state for several combinations, possibly including one without tokens."""
    counts = lengths(segments)
    return SiteState(
        keys=_layers([segment.keys for segment in segments], max(counts)),
        values=_layers([segment.values for segment in segments], max(counts)),
        present=present(counts, device),
        always_visible=_column([segment.always_visible for segment in segments], False, device),
        dropout=_column([segment.dropout for segment in segments], 0.0, device) if is_training else None,
        weight=_column([segment.weight for segment in segments], 1.0, device),
        scores=_scores(segments, max(counts)),
        mask=_masks(segments, max(counts), device),
    )


def _masks(
    segments: Sequence[Segment], longest: int, device: torch.device
) -> Bool[Tensor, "combinations rows {longest}"] | None:
    """Stack the masks of tokens that each row of the text sees, true for padding; `None` if every row sees all."""
    if all([segment.mask is None for segment in segments]):
        return None
    rows = max([1 if segment.mask is None else segment.mask.shape[0] for segment in segments])
    stacked = torch.ones(len(segments), rows, longest, dtype=torch.bool, device=device)
    for index, segment in enumerate(segments):
        if segment.mask is not None:
            stacked[index, :, : segment.length] = segment.mask.to(device)
    return stacked


def _scores(
    segments: Sequence[Segment], longest: int
) -> tuple[Float[Tensor, "combinations _ {longest} 1"], ...] | None:
    """Stack the numbers added to the attention scores, zeros for segments without any; `None` if none has any."""
    columns = [segment.scores or [] for segment in segments]
    return _layers(columns, longest) if any(columns) else None


def _layers(
    columns: Sequence[Sequence[Float[Tensor, "_ _ _"]]], longest: int
) -> tuple[Float[Tensor, "combinations _ {longest} _"], ...]:
    depth = max([len(column) for column in columns])
    return tuple([stack_padded([own[layer] if own else None for own in columns], longest) for layer in range(depth)])


def _column(
    rows: Sequence[list[Any]], usual: float, device: torch.device
) -> Shaped[Tensor, "combinations tokens"] | None:
    """Arrange a number for each token; `None` if all equal the usual one."""
    if all([value == usual for row in rows for value in row]):
        return None
    longest = max([len(row) for row in rows])
    return torch.tensor([row + [usual] * (longest - len(row)) for row in rows], device=device)


def _alone(segment: Segment, is_training: bool) -> SiteState:
    """Return the state for a combination shared by all rows, as views, so that no step copies it."""
    keys, values, device = segment.keys, segment.values, segment.keys[0].device
    return SiteState(
        keys=tuple([layer[None] for layer in keys]),
        values=tuple([layer[None] for layer in values]),
        present=None,
        always_visible=torch.tensor([segment.always_visible], device=device) if any(segment.always_visible) else None,
        dropout=torch.tensor([segment.dropout], device=device) if is_training and any(segment.dropout) else None,
        weight=torch.tensor([segment.weight], device=device) if set(segment.weight) != {1.0} else None,
        scores=None if segment.scores is None else tuple([layer[None] for layer in segment.scores]),
        mask=None if segment.mask is None else segment.mask[None].to(device),
    )


def stack_embeddings(
    call: Call,
) -> tuple[Float[Tensor, "combinations tokens hidden"], Bool[Tensor, "combinations tokens"] | None, list[int]] | None:
    """Stack the input-level tokens of all combinations, padded to the longest.

    Args:
        call: The prompts of this forward.

    Returns:
        Embeddings, which of them are present (`None` for all), and the count
        per combination; `None` if there are no input-level prompts.
    """
    parts = [call.input_tokens(combination) for combination in call.selection.combinations]
    joined = [torch.cat(part) if part else None for part in parts]
    counts = [0 if part is None else len(part) for part in joined]
    if not any(counts):
        return None
    stacked = stack_padded(joined, max(counts))
    return stacked, present(counts, stacked.device), counts


def stack_padded(
    parts: Sequence[Float[Tensor, "... _ width"] | None], length: int
) -> Float[Tensor, "parts ... {length} width"]:
    """Stack tensors that have different numbers of tokens, padded with zeros.

    Args:
        parts: Of equal sizes except for the tokens; `None` for one without tokens, but not for all.
        length: Tokens of the result, at least those of the longest part.

    Returns:
        All parts in one tensor; a view if there is only one part, so that no step copies it.
    """
    if len(parts) == 1 and parts[0] is not None:
        return parts[0][None]
    template = next(part for part in parts if part is not None)
    empty = template[..., :0, :]
    return torch.stack([_pad(empty if part is None else part, length) for part in parts])


def present(counts: Sequence[int], device: torch.device) -> Bool[Tensor, "parts tokens"] | None:
    """Distinguish tokens from padding.

    Args:
        counts: Number of tokens in each of the stacked parts.
        device: Where the result is needed.

    Returns:
        Whether each is a token; `None` if nothing is padded.
    """
    if min(counts) == max(counts):
        return None
    return torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]


def _pad(part: Float[Tensor, "... tokens width"], length: int) -> Float[Tensor, "... {length} width"]:
    missing = length - part.shape[-2]
    return functional.pad(part, (0, 0, 0, missing)) if missing else part


def layer_prompt(
    prompt: SiteState, rows: Int[Tensor, " {count}"] | None, layer: int, count: int
) -> tuple[Float[Tensor, "{count} kv_heads tokens head_dim"], Float[Tensor, "{count} kv_heads tokens value_dim"]]:
    """Return the keys and values of the prompts that each row sees in a layer.

    Args:
        prompt: The state of the site.
        rows: Index of each row's combination; `None` if all share one.
        layer: The layer.
        count: Rows of the batch.

    Returns:
        Keys and values for each row.
    """
    keys, values = rows_of(prompt.keys[layer], rows, count), rows_of(prompt.values[layer], rows, count)
    if prompt.dropout is None:
        return keys, values
    probability = rows_of(prompt.dropout, rows, count)[:, None, :, None]
    return drop(keys, probability), drop(values, probability)


def rows_of(
    tensor: Shaped[Tensor, "combinations ..."], rows: Int[Tensor, " {count}"] | None, count: int
) -> Shaped[Tensor, "{count} ..."]:
    """Spread a tensor with an entry per combination over `count` rows."""
    return tensor.expand(count, *tensor.shape[1:]) if rows is None else tensor[rows]


def drop(tensor: Float[Tensor, "*#shape"], probability: Float[Tensor, "*#shape"]) -> Float[Tensor, "*#shape"]:
    """Zero elements with the given probabilities, and scale the others to preserve the mean."""
    keep = torch.rand_like(tensor) >= probability.to(tensor.dtype)
    return tensor * keep / (1 - probability.to(tensor.dtype))
