"""The virtual tokens of all combinations in one tensor, padded to the longest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.sites.call import Call, Segment
from softprompt_zoo.sites.state import SiteState
from softprompt_zoo.tokens.tokens import InputTokens, Placement


def join(segments: Sequence[Segment | None]) -> Segment | None:
    """Put segments one behind the other; `None` segments are empty."""
    joined = None
    for segment in segments:
        if segment is not None:
            joined = segment if joined is None else joined + segment
    return joined


def lengths(segments: Sequence[Segment | None]) -> list[int]:
    """Count the virtual tokens of each segment."""
    return [0 if segment is None else segment.length for segment in segments]


def token_counts(call: Call, site: str) -> list[int]:
    """Count the virtual tokens that each combination has in front of a causal stack's text.

    Args:
        call: The prompts of this forward.
        site: The stack's self-attention.

    Returns:
        One count per combination.
    """

    def count(placement: Placement) -> int:
        if isinstance(placement.tokens, InputTokens):
            return placement.tokens.embeddings.shape[0]
        return lengths([Segment.of(placement, site)])[0]

    return [sum([count(call.placements[name]) for name in names]) for names in call.selection.combinations]


def site_state(segments: Sequence[Segment | None], is_training: bool) -> SiteState | None:
    """Stack the segments of all combinations, padded to the longest.

    Args:
        segments: One per combination.
        is_training: Whether dropout acts.

    Returns:
        The state of a site, or `None` if no combination has tokens there.
    """
    full = [segment for segment in segments if segment is not None]
    if not full:
        return None
    counts = lengths(segments)
    longest = max(counts)
    device = full[0].keys[0].device

    def stack(kind: str) -> tuple[Tensor, ...]:
        if len(segments) == 1:  # a view: stacking would copy every layer in every step
            return tuple(layer[None] for layer in getattr(full[0], kind))
        columns = []
        for layer, template in enumerate(getattr(full[0], kind)):
            empty = template.new_zeros(template.shape[0], longest, template.shape[2])
            rows = [empty if e is None else _pad(getattr(e, kind)[layer], longest) for e in segments]
            columns.append(torch.stack(rows))
        return tuple(columns)

    def column(kind: str, filler: Any) -> Tensor:
        rows = [[] if e is None else getattr(e, kind) for e in segments]
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)

    ragged = min(counts) < longest
    present = torch.arange(longest, device=device) < torch.tensor(counts, device=device)[:, None]
    return SiteState(
        keys=stack("keys"),
        values=stack("values"),
        present=present if ragged else None,
        always_visible=column("always_visible", False) if any(any(e.always_visible) for e in full) else None,
        dropout=column("dropout", 0.0) if is_training and any(any(e.dropout) for e in full) else None,
        weight=column("weight", 1.0) if any(any([w != 1.0 for w in e.weight]) for e in full) else None,
    )


def stack_embeddings(call: Call) -> tuple[Tensor, Tensor | None, list[int]] | None:
    """Stack the input-level tokens of all combinations, padded to the longest.

    Args:
        call: The prompts of this forward.

    Returns:
        Embeddings `(combinations, tokens, hidden)`, which of them are present (`None` for all), and the
        count per combination; `None` if there are no input-level prompts.
    """
    parts = [call.input_tokens(combination) for combination in call.selection.combinations]
    template = next((part[0] for part in parts if part), None)
    if template is None:
        return None
    joined = [torch.cat(part) if part else template.new_zeros(0, template.shape[1]) for part in parts]
    counts = [len(part) for part in joined]
    longest = max(counts)
    stacked = torch.stack([_pad(part, longest) for part in joined])
    if min(counts) == longest:
        return stacked, None, counts
    present = torch.arange(longest, device=stacked.device) < torch.tensor(counts, device=stacked.device)[:, None]
    return stacked, present, counts


def _pad(tensor: Tensor, length: int) -> Tensor:
    """Pad the second-to-last axis, the tokens, with zeros."""
    return functional.pad(tensor, (0, 0, 0, length - tensor.shape[-2])) if tensor.shape[-2] < length else tensor
