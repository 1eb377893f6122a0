"""A decoder after an encoder: its own keys and values, and the encoder's virtual positions in cross-attention."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Float, Int, Shaped
from softprompt_zoo.sites.batch import lengths, segments_at, site_state, stack_embeddings
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.encoder_states import whole_states
from softprompt_zoo.sites.position_table import Past
from softprompt_zoo.sites.positions import move_text
from softprompt_zoo.sites.reading import placed
from softprompt_zoo.sites.relative_bias import relative_bias
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.stacks.kind import StackKind
from softprompt_zoo.sites.stacks.placing import state_of
from softprompt_zoo.sites.state import CallState
from softprompt_zoo.sites.text_outputs import text_only


class Decoder(StackKind):
    """Virtual tokens at the input embeddings belong to the encoder, as does the text that prompts read and change."""

    def read(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Shaped[Tensor, "rows length ..."],
        past: Past,
    ) -> tuple[Call, dict[str, Any], Shaped[Tensor, "rows length ..."]]:
        """Take what was made from the text that the encoder read."""
        read = call.trace.read or ({} if call.decoding is None else call.decoding.read)
        return placed(call, read, text.shape[0], text.device), kwargs, text

    def prepare(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Shaped[Tensor, "rows length ..."],
        past: Past,
    ) -> tuple[dict[str, Any], CallState]:
        """Move the text after keys and values, and show it the encoder's virtual positions."""
        segments = {site: segments_at(call, site) for site in ("decoder", "cross")}
        counts = lengths(segments["decoder"])
        state = state_of({site: site_state(own, call.is_training) for site, own in segments.items()}, call)
        if max(counts) or state.acts_beside("decoder"):
            kwargs, positions = move_text(stack, call, counts, kwargs, text, past)
            state.positions = positions
            state.bias = relative_bias(stack, positions, max(counts)) if max(counts) else None
        kwargs = _with_whole_states(call, kwargs, state)
        return _show_virtual_positions(call, kwargs), state

    def finish(self, stack: Stack, output: Any, state: CallState, call: Call) -> Any:
        """Cut the cross-attention weights to the text if the given states were cut."""
        if state.cut_states is not None and output.get("cross_attentions") is not None:
            output.cross_attentions = text_only(output.cross_attentions, state.cut_states, (3,))
        return output


def _with_whole_states(call: Call, kwargs: dict[str, Any], state: CallState) -> dict[str, Any]:
    """Restore virtual positions in states given by the caller rather than by this call's encoder."""
    states = kwargs.get("encoder_hidden_states")
    if states is None or call.trace.layout is not None:
        return kwargs
    whole, state.cut_states = whole_states(states, kwargs.get("encoder_attention_mask"), call)
    return {**kwargs, "encoder_hidden_states": whole}


def _show_virtual_positions(call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Extend the cross-attention mask over the virtual positions in the encoder's states."""
    embedded = stack_embeddings(call)
    states, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
    if embedded is None or states is None:
        return kwargs
    _, present, counts = embedded
    if mask is None:
        if present is None:
            return kwargs
        mask = torch.ones(states.shape[0], states.shape[1] - max(counts), dtype=torch.long, device=states.device)
    return {**kwargs, "encoder_attention_mask": _extended(mask, states, call.per_row(counts, states.device))}


def _extended(
    mask: Shaped[Tensor, "..."], states: Float[Tensor, "rows positions hidden"], virtual: Int[Tensor, "#rows 1"]
) -> Shaped[Tensor, "..."]:
    """Add each row's virtual positions before its text; a mask that already has them is unchanged."""
    rows, length = states.shape[:2]
    if mask.ndim != 2 or mask.shape[1] == length:
        return mask
    seen = torch.arange(length, device=states.device)[None] < mask.sum(dim=1, keepdim=True) + virtual
    return seen.expand(rows, -1).to(mask.dtype)
