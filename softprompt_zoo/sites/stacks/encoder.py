"""Bidirectional stacks: virtual tokens at the input embeddings are real positions before the text."""

from typing import Any

from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float, Shaped
from softprompt_zoo.sites import input_embeddings
from softprompt_zoo.sites.batch import lengths, rows_of, segments_at, site_state, stack_embeddings
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.encoder_states import remember
from softprompt_zoo.sites.position_table import Past, check_budget
from softprompt_zoo.sites.positions import embeddings_of, move_text, text_positions
from softprompt_zoo.sites.slots import keep_positions
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.stacks.kind import StackKind
from softprompt_zoo.sites.stacks.placing import state_of, with_slots
from softprompt_zoo.sites.state import CallState
from softprompt_zoo.sites.text_outputs import cut_output


class Encoder(StackKind):
    """An encoder by itself: text comes after keys and values as after tokens, and its caller sees only the text."""

    def read(
        self, stack: Stack, call: Call, kwargs: dict[str, Any], text: Shaped[Tensor, "rows length ..."], past: Past
    ) -> tuple[Call, dict[str, Any], Shaped[Tensor, "rows length ..."]]:
        """Let prompts read the text and change its embeddings, from which positions can no longer be derived."""
        if call.maps:
            kwargs = keep_positions(stack, kwargs, text.shape[1])
        return super().read(stack, call, kwargs, text, past)

    def prepare(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Shaped[Tensor, "rows length ..."],
        past: Past,
    ) -> tuple[dict[str, Any], CallState]:
        """Put embeddings before the text, and move it after keys and values."""
        if call.slots is not None:
            kwargs = keep_positions(stack, kwargs, text.shape[1])
        kwargs, text = with_slots(stack, call, kwargs, text, past)
        segments = segments_at(call, stack.name)
        counts = lengths(segments)
        kwargs, text = _with_embeddings(stack, call, kwargs, text, max(counts))
        state = state_of({stack.name: site_state(segments, call.is_training)}, call)
        if max(counts) or state.acts_beside(stack.name):
            kwargs, state.positions = move_text(stack, call, counts, kwargs, text, past)
        return kwargs, state

    def finish(self, stack: Stack, output: Any, state: CallState, call: Call) -> Any:
        """Cut the output to the text."""
        if call.trace.layout is None:
            return output
        return cut_output(stack.module, output, call.trace.layout, call.pooled_rows(output[0].device))


class EncoderInFront(StackKind):
    """An encoder before a decoder: its text keeps its positions, as in T5, and the decoder sees all positions."""

    def prepare(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Shaped[Tensor, "rows length ..."],
        past: Past,
    ) -> tuple[dict[str, Any], CallState]:
        """Put embeddings before the text, next to keys and values that take up no positions."""
        kwargs, text = with_slots(stack, call, kwargs, text, past)
        segments = segments_at(call, stack.name)
        kwargs, text = _with_embeddings(stack, call, kwargs, text, 0)
        state = state_of({stack.name: site_state(segments, call.is_training)}, call)
        if state.acts_beside(stack.name):
            kwargs, state.positions = move_text(stack, call, [0] * len(segments), kwargs, text, past)
        elif max(lengths(segments)):
            state.positions = text_positions(kwargs, text.shape[1], past, text.device)
            if stack.takes_position_ids:
                # Keys are rotated, so padding would move the text away from the prefix.
                kwargs = {**kwargs, "position_ids": state.positions}
        return kwargs, state

    def finish(self, stack: Stack, output: Any, state: CallState, call: Call) -> Any:
        """Remember where the text was placed, in case the states are passed back in."""
        if call.trace.layout is not None:
            remember(output.last_hidden_state, call.trace.layout)
        return output


class SoundEncoder(StackKind):
    """An encoder that reads audio: it has no padding, counts its positions itself, and takes no tokens."""

    def prepare(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Float[Tensor, "rows channels frames"],
        past: Past,
    ) -> tuple[dict[str, Any], CallState]:
        """Insert keys and values."""
        segments = segments_at(call, stack.name)
        return kwargs, state_of({stack.name: site_state(segments, call.is_training)}, call)


def _with_embeddings(
    stack: Stack, call: Call, kwargs: dict[str, Any], text: Shaped[Tensor, "rows length ..."], keys: int
) -> tuple[dict[str, Any], Shaped[Tensor, "rows positions ..."]]:
    """Put any virtual tokens before the text as real positions; return arguments and text.

    Raises:
        UnsupportedError: If padding or attention weights would be wrong.
        ValueError: If the text does not fit after them and `keys` further positions.
    """
    embedded = stack_embeddings(call)
    if embedded is None:
        return kwargs, text
    stack.reach.refuse_attentions(stack, kwargs)
    virtual, present, counts = embedded
    rows = call.selection.rows
    virtual = rows_of(virtual, rows, text.shape[0])
    if present is not None:
        _check_padding(stack)
        present = rows_of(present, rows, text.shape[0])
    kwargs, layout = input_embeddings.insert(virtual, present, kwargs, embeddings_of(stack, kwargs, text))
    call.trace.layout = layout
    if call.decoding is not None:
        call.decoding.layout = layout
    text = kwargs["inputs_embeds"]
    check_budget(stack, text.shape[1] + keys, max(counts) + keys)
    return kwargs, text


def _check_padding(stack: Stack) -> None:
    """Refuse padding between prompt and text if it changes the text's states."""
    if stack.is_padding_sensitive:
        raise UnsupportedError(
            f"padding changes the states of {type(stack.module).__name__}, so rows with prompts of different "
            "lengths, or without one, would be wrong in one batch; give each length its own call"
        )
