"""What the prompts in front of a text were built into when the text was begun; decoding goes on with it.

Real tokens in front of a text are computed once, with the weights of that moment, and stay in its cache. Prompts do
the same: what was built of them stays with the text's cache, or with one `generate`, and nothing outlives the text.
So there is no change, of weights, buffers, hooks or anything else, that the next text could miss.
"""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Int
from softprompt_zoo.sites.batch import segments_at
from softprompt_zoo.sites.call import ATTRIBUTE, Call, DecodingState, Prefix
from softprompt_zoo.sites.position_table import Past
from softprompt_zoo.sites.positions import past_length
from softprompt_zoo.sites.selection import Combination
from softprompt_zoo.sites.shared_pass import causal_prefix
from softprompt_zoo.sites.stack import Stack


def has_text(cache: Any) -> bool:
    """Return whether a cache is known to hold text; not of a static one, which counts on the device."""
    past = past_length(cache)
    return isinstance(past, int) and past > 0


def state_of(cache: Any) -> DecodingState | None:
    """Return the state of a cache's text; `None` if there is no text in it, or none that was begun with prompts."""
    return getattr(cache, ATTRIBUTE, None) if has_text(cache) else None


def prefix_of(stack: Stack, call: Call, positions: Int[Tensor, "#rows length"], past: Past) -> Prefix:
    """Turn a causal call's prompts into keys and values, or go on with those that the text was begun with.

    Args:
        stack: A causal stack.
        call: The prompts of this forward.
        positions: Where the text of this forward is after them.
        past: Tokens of text in the cache.

    Returns:
        Keys and values per combination.
    """
    state = call.decoding
    reach = None if stack.rotation_limit is None else _reach(state, positions, past)
    if state is None or not _is_kept(call):
        return causal_prefix(stack, call, reach)
    combinations = call.selection.combinations
    known = _known(state, combinations, reach)
    if known is None:
        known = causal_prefix(stack, call, reach)
        state.prefix = combinations, reach, known
    return known


def segments_of(stack: Stack, call: Call) -> Prefix:
    """Return the keys and values of a causal call that has no other tokens, or those that the text was begun with.

    Args:
        stack: A causal stack.
        call: The prompts of this forward.

    Returns:
        Keys and values per combination.
    """
    state = call.decoding
    if state is None or call.is_training or torch.is_grad_enabled():
        return Prefix.of(segments_at(call, stack.name))
    combinations = call.selection.combinations
    known = _known(state, combinations, None)
    if known is None:
        known = Prefix.of(segments_at(call, stack.name))
        state.prefix = combinations, None, known
    return known


def _is_kept(call: Call) -> bool:
    """Return whether what is built now may serve the next forward, and took the model to build."""
    if call.is_training or torch.is_grad_enabled():
        return False
    return any([placement.tokens.at_input is not None for placement in call.placements.values()])


def _known(state: DecodingState, combinations: tuple[Combination, ...], reach: Int[Tensor, ""] | None) -> Prefix | None:
    """Return what was built of these combinations, for a text that went as far."""
    if state.prefix is None:
        return None
    of_combinations, of_reach, prefix = state.prefix
    return prefix if of_combinations == combinations and of_reach is reach else None


def _reach(state: DecodingState | None, positions: Int[Tensor, "#rows length"], past: Past) -> Int[Tensor, ""]:
    """Return how far the text went when its keys were computed: now, if none of it is in a cache."""
    if state is None:
        return positions.max()
    if state.reach is None or not int(past):
        state.reach = positions.max()
        state.ahead = int(state.reach) + 1 - positions.shape[-1] - int(past)
    return state.reach
