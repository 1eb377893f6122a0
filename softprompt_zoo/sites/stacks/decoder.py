"""A decoder after an encoder: keys and values of its own, and the encoder's virtual positions in cross-attention."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Shaped
from softprompt_zoo.sites.batch import lengths, segments_at, stack_embeddings
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.encoder_states import whole_states
from softprompt_zoo.sites.positions import Past, move_text
from softprompt_zoo.sites.relative_bias import relative_bias
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.stacks.kind import StackKind
from softprompt_zoo.sites.stacks.placing import state_of
from softprompt_zoo.sites.state import CallState
from softprompt_zoo.sites.text_outputs import text_only


class Decoder(StackKind):
    """Virtual tokens at the input embeddings are the encoder's."""

    def prepare(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Shaped[Tensor, "rows length ..."],
        past: Past,
    ) -> tuple[dict[str, Any], CallState]:
        """Move the text after keys and values, and let it see the encoder's virtual positions."""
        segments = {site: segments_at(call, site) for site in ("decoder", "cross")}
        counts = lengths(segments["decoder"])
        state = state_of(segments, call)
        if max(counts) or state.gated["decoder"]:
            kwargs, state.positions = move_text(stack, call, counts, kwargs, text, past)
        if max(counts) and state.positions is not None:
            state.bias = relative_bias(stack, state.positions, max(counts))
        has_encoded = call.trace.layout is not None
        if not has_encoded and kwargs.get("encoder_hidden_states") is not None:
            mask = kwargs.get("encoder_attention_mask")
            states, state.cut_states = whole_states(kwargs["encoder_hidden_states"], mask, call)
            kwargs = {**kwargs, "encoder_hidden_states": states}
        return _show_virtual_positions(call, kwargs), state

    def finish(self, stack: Stack, output: Any, state: CallState, call: Call) -> Any:
        """Cut cross-attention's weights to the text, where the states that were given had been."""
        if state.cut_states is not None and output.get("cross_attentions") is not None:
            output.cross_attentions = text_only(output.cross_attentions, state.cut_states, (3,))
        return output


def _show_virtual_positions(call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Extend the cross-attention's mask over the virtual positions in the encoder's states."""
    embedded = stack_embeddings(call)
    states, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
    if embedded is None or states is None or (mask is not None and mask.ndim != 2):
        return kwargs
    _, present, counts = embedded
    length = states.shape[1]
    is_whole = present is None if mask is None else mask.shape[1] == length
    if is_whole:
        return kwargs
    text = length - max(counts) if mask is None else mask.sum(dim=1, keepdim=True)
    valid = torch.arange(length, device=states.device)[None] < text + call.per_row(counts, states.device)
    valid = valid.expand(states.shape[0], -1).to(torch.long if mask is None else mask.dtype)
    return {**kwargs, "encoder_attention_mask": valid}
