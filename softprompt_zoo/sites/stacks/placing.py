"""Functions shared by the kinds of stacks: the state of a call, slots in the text, and moving the text."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from softprompt_zoo.shapes import Int, Shaped
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.gates import gated_parts
from softprompt_zoo.sites.position_table import Past
from softprompt_zoo.sites.positions import embeddings_of
from softprompt_zoo.sites.slots import fill_slots
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import CallState, SiteState


def state_of(
    states: Mapping[str, SiteState | None], call: Call, positions: Int[Tensor, "#rows length"] | None = None
) -> CallState:
    """Build the state of a stack's attention.

    Args:
        states: Site name to its state, for each site of the stack.
        call: The prompts.
        positions: Positions of the queries, for sliding windows.

    Returns:
        The state.
    """
    sites = {site: state for site, state in states.items() if state is not None}
    placed = call.placed
    gated = {site: gated_parts(placed, site) for site in states}
    branches = call.branches_of_rows()
    return CallState(
        sites,
        call.selection.rows,
        positions,
        gated=gated,
        branches=branches,
        call=call,
        is_in_order=call.selection.is_in_order,
    )


def with_slots(
    stack: Stack,
    call: Call,
    kwargs: dict[str, Any],
    text: Shaped[Tensor, "rows length ..."],
    past: Past,
) -> tuple[dict[str, Any], Shaped[Tensor, "rows length ..."]]:
    """Put virtual tokens into the slots of a text, if it has any; return the arguments and the text."""
    if call.slots is None:
        return kwargs, text
    text = fill_slots(call.slots, embeddings_of(stack, kwargs, text), call.selection.rows, past)
    return {**kwargs, "input_ids": None, "inputs_embeds": text}, text
