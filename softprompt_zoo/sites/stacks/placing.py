"""What the kinds of stacks have in common: the state of a call, slots in the text, and text that is moved."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.sites.batch import join, site_state
from softprompt_zoo.sites.call import Call, Segment
from softprompt_zoo.sites.gates import gated_parts
from softprompt_zoo.sites.positions import (
    check_budget,
    check_start,
    own_positions,
    shift_learned_positions,
    text_positions,
)
from softprompt_zoo.sites.slots import fill_slots
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import CallState


def segments_at(call: Call, site: str) -> list[Segment | None]:
    """Return the keys and values of each combination at a site."""
    return [join([Segment.of(call.placements[part], site) for part in parts]) for parts in call.selection.combinations]


def state_of(segments: dict[str, list[Segment | None]], call: Call, positions: Tensor | None = None) -> CallState:
    """Make the state of a stack's attention.

    Args:
        segments: Site name to the keys and values of each combination.
        call: The prompts.
        positions: `(rows or 1, length)` of the queries, for sliding windows.

    Returns:
        The state.
    """
    states = {site: site_state(combinations, call.is_training) for site, combinations in segments.items()}
    sites = {site: state for site, state in states.items() if state is not None}
    placements = [[call.placements[part] for part in parts] for parts in call.selection.combinations]
    gated = {site: gated_parts(placements, site) for site in segments}
    return CallState(sites, call.selection.rows, positions, gated=gated, call=call)


def embeddings_of(stack: Stack, kwargs: dict[str, Any], text: Tensor) -> Tensor:
    """Return the embeddings of a stack's text."""
    return text if kwargs.get("inputs_embeds") is not None else stack.embed(text)


def with_slots(
    stack: Stack, call: Call, kwargs: dict[str, Any], text: Tensor, past: int | Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Put virtual tokens into the slots of a text, if there are any; return the arguments and the text."""
    if call.slots is None:
        return kwargs, text
    text = fill_slots(call.slots, embeddings_of(stack, kwargs, text), call.selection.rows, past)
    return {**kwargs, "input_ids": None, "inputs_embeds": text}, text


def move_text(
    stack: Stack, call: Call, counts: list[int], kwargs: dict[str, Any], text: Tensor, past: int | Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Let the text start behind virtual tokens.

    Args:
        stack: The stack.
        call: The prompts.
        counts: How many virtual tokens each combination has there.
        kwargs: The stack's arguments. Not changed.
        text: What it reads of them.
        past: Tokens of text in its cache.

    Returns:
        The arguments and the text's positions, `(rows or 1, length)`.

    Raises:
        ValueError: If the text does not fit behind them.
        UnsupportedError: If the positions that were given begin before the model's own.
    """
    length = text.shape[1]
    if isinstance(past, int):
        check_budget(stack, past + length + max(counts), max(counts))
    positions = text_positions(kwargs, length, past, text.device)
    if min(counts) == 0:
        own = own_positions(stack, kwargs, length, past, text.device)
        positions = torch.where(call.per_row(counts, text.device) == 0, own, positions)
    if stack.takes_position_ids:
        check_start(stack, kwargs, past)
        start = stack.position_start if kwargs.get("position_ids") is None else 0
        positions = positions + start + call.per_row(counts, text.device)
        return {**kwargs, "position_ids": positions}, positions
    positions = positions + call.per_row(counts, text.device)
    if stack.position_table is not None:
        seen = stack.reach.counted(past, max(counts))
        embeddings = shift_learned_positions(stack, embeddings_of(stack, kwargs, text), seen, positions)
        kwargs = {**kwargs, "input_ids": None, "inputs_embeds": embeddings}
    return kwargs, positions
