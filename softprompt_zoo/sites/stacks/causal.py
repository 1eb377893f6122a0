"""A causal stack: every combination precedes the text as keys and values."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.shapes import Bool, Float, Int, Shaped
from softprompt_zoo.sites.batch import lengths, rows_of, segments_at, site_state, stacked, token_counts
from softprompt_zoo.sites.call import Call, Prefix
from softprompt_zoo.sites.decoding_state import prefix_of, segments_of
from softprompt_zoo.sites.position_table import Past
from softprompt_zoo.sites.positions import check_packing, move_text
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.stacks.kind import StackKind
from softprompt_zoo.sites.stacks.placing import state_of, with_slots
from softprompt_zoo.sites.state import CallState


class Causal(StackKind):
    """No token sees a later one, so virtual tokens are computed separately from the text."""

    def prepare(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Shaped[Tensor, "rows length ..."],
        past: Past,
    ) -> tuple[dict[str, Any], CallState]:
        """Move the text after the combinations, and turn these into keys and values."""
        if call.slots is not None:
            kwargs, text = with_slots(stack, call, kwargs, text, past)
        check_packing(stack, kwargs, text.shape[1])
        if call.share_softmax and stack.rotation_limit is None:
            if len(call.selection.combinations) > 1:
                prefix = segments_of(stack, call)
            else:
                prefix = Prefix(segments_at(call, stack.name), [{}], [None])
            kwargs, positions = move_text(stack, call, lengths(prefix.segments), kwargs, text, past)
            state = _state(stack, call, prefix, positions)
        else:
            kwargs, positions = move_text(stack, call, token_counts(call, stack.name), kwargs, text, past)
            prefix = prefix_of(stack, call, positions, past)
            state = state_of({stack.name: stacked(prefix, call.is_training)}, call, positions)
        if call.first_index is not None:
            state.tails = tails_of(prefix, call, text)
        if call.is_training:
            call.trace.prefix = prefix
        return kwargs, state

    def finish(self, stack: Stack, output: Any, state: CallState, call: Call) -> Any:
        """Put the prompt's last hidden state where the head predicts the first text token."""
        if state.tails is None:
            return output
        states, has_tail = state.tails
        hidden = functional.pad(output.last_hidden_state, (0, 0, 1, 0))
        index = call.first_index[:, None, None].expand(-1, 1, hidden.shape[2])  # type: ignore[index]
        chosen = torch.where(has_tail[..., None], states[:, None].to(hidden), hidden.gather(1, index))
        output.last_hidden_state = hidden.scatter(1, index, chosen)
        return output


def _state(stack: Stack, call: Call, prefix: Prefix, positions: Int[Tensor, "#rows length"]) -> CallState:
    """Return the state if all tokens are keys and values that share the softmax of the text."""
    several = len(call.selection.combinations) > 1
    site = stacked(prefix, call.is_training) if several else site_state(prefix.segments, call.is_training)
    state = CallState({} if site is None else {stack.name: site}, call.selection.rows, positions, call=call)
    if call.branches:
        state.branches = call.branches_of_rows()
    state.is_in_order = call.selection.is_in_order
    return state


def tails_of(
    prefix: Prefix, call: Call, text: Shaped[Tensor, "rows length ..."]
) -> tuple[Float[Tensor, "rows hidden"], Bool[Tensor, "rows 1"]] | None:
    """Return the hidden states that predict each row's first token, and which rows have one."""
    template = next((tail for tail in prefix.tails if tail is not None), None)
    if template is None:
        return None
    tails = torch.stack([torch.zeros_like(template) if tail is None else tail for tail in prefix.tails])
    tails = rows_of(tails, call.selection.rows, text.shape[0])
    has_tail = call.per_row([tail is not None for tail in prefix.tails], text.device)
    return tails, has_tail.expand(text.shape[0], 1)
