"""What the prompts before a text were turned into when the text started; decoding continues with it.

Real tokens before a text are computed once, with the current weights, and stay in its cache. Prompts do the same: what
they were turned into stays with the text's cache, or with one `generate`, and nothing outlives the text. So the next
text cannot miss a change of weights, buffers, hooks or anything else.
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
    """Return whether a cache is known to hold text; false for a static one, which counts on the device."""
    past = past_length(cache)
    return isinstance(past, int) and past > 0


def decoding_state_of(cache: Any) -> DecodingState | None:
    """Return the state of a cache's text; `None` if it has no text, or one that was started without prompts."""
    return getattr(cache, ATTRIBUTE, None) if has_text(cache) else None


def prefix_of(stack: Stack, call: Call, positions: Int[Tensor, "#rows length"], past: Past) -> Prefix:
    """Turn a causal call's prompts into keys and values, or continue with those that the text started with.

    Args:
        stack: A causal stack.
        call: The prompts of this forward.
        positions: Positions of this forward's text after the prompts.
        past: Text tokens in the cache.

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
    """Return the keys and values of a causal call without other tokens, or those that the text started with.

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
    """Return whether the result may serve the next forward and required running the model."""
    if call.is_training or torch.is_grad_enabled():
        return False
    return any([placement.tokens.at_input is not None for placement in call.placements.values()])


def _known(state: DecodingState, combinations: tuple[Combination, ...], reach: Int[Tensor, ""] | None) -> Prefix | None:
    """Return what these combinations were turned into, for a text of the same reach."""
    if state.prefix is None:
        return None
    of_combinations, of_reach, prefix = state.prefix
    return prefix if of_combinations == combinations and of_reach is reach else None


def _reach(state: DecodingState | None, positions: Int[Tensor, "#rows length"], past: Past) -> Int[Tensor, ""]:
    """Return how far the text reached when its keys were computed: now, if none of it is in a cache."""
    if state is None:
        return positions.max()
    if state.reach is None or not int(past):
        state.reach = positions.max()
        state.ahead = int(state.reach) + 1 - positions.shape[-1] - int(past)
    return state.reach
