"""The two hooks on each stack: prompts in before its forward, virtual positions out after it."""

import dataclasses
import inspect
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.backbone.replaced_forward import check_entry
from softprompt_zoo.backbone.traits import given_cache
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites import input_embeddings
from softprompt_zoo.sites.batch import join, lengths, site_state, stack_embeddings, token_counts
from softprompt_zoo.sites.call import Call, Layout, Prefix, Segment
from softprompt_zoo.sites.checkpointing import anchor
from softprompt_zoo.sites.decoding_state import keep_state, prefix_of
from softprompt_zoo.sites.encoder_states import remember, whole_states
from softprompt_zoo.sites.gates import gated_parts
from softprompt_zoo.sites.positions import (
    check_budget,
    check_packing,
    check_start,
    own_positions,
    past_length,
    relative_bias,
    shift_learned_positions,
    text_positions,
)
from softprompt_zoo.sites.slots import fill_slots, keep_positions
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import CallState
from softprompt_zoo.sites.text_outputs import cut_output, text_only

BINDING_ATTRIBUTE = "_softprompt_binding"


class Host(Protocol):
    """What the hooks need of the model's prompts."""

    def resolve(self, prompts: Any, task_ids: Any, soft_slots: Tensor | None, cache: Any) -> Call:
        """Build the prompts of one forward."""

    def keep_layout(self, layout: Layout) -> None:
        """Remember where an encoder's text went, for a `generate` that returns the encoder's states."""


@dataclasses.dataclass
class Binding:
    """What ties a stack to the prompts; kept on the stack's module."""

    family: str
    stack: Stack
    host: Host
    argument_names: list[str]
    """Names of the forward's positional arguments, in order."""
    implementation: str
    """The attention implementation, ours, that its config names."""
    handles: list[Any] = dataclasses.field(default_factory=list)


def bind(family: str, stack: Stack, host: Host) -> None:
    """Put the hooks on a stack.

    Args:
        family: The backbone's family.
        stack: The stack; its module is changed.
        host: The model's prompts.

    Raises:
        RuntimeError: If it has some.
    """
    if BINDING_ATTRIBUTE in stack.module.__dict__:
        raise RuntimeError(f"{type(stack.module).__name__} has hooks of prompts already")
    names = list(inspect.signature(type(stack.module).forward).parameters)[1:]
    binding = Binding(family, stack, host, names, stack.module.config._attn_implementation)
    binding.handles = [
        stack.module.register_forward_pre_hook(before_forward, with_kwargs=True),
        stack.module.register_forward_hook(after_forward, with_kwargs=True),
    ]
    setattr(stack.module, BINDING_ATTRIBUTE, binding)


def unbind(stack: Stack) -> None:
    """Take the hooks off a stack."""
    for handle in stack.module.__dict__.pop(BINDING_ATTRIBUTE).handles:
        handle.remove()


def before_forward(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Bring the prompts into one call of a stack. A forward pre-hook."""
    if STATE_KEYWORD in kwargs:
        return None
    binding: Binding = getattr(module, BINDING_ATTRIBUTE)
    kwargs = {**dict(zip(binding.argument_names, args, strict=False)), **kwargs}
    prompts, task_ids, slots = (kwargs.pop(name, None) for name in ("prompts", "task_ids", "soft_slots"))
    cache = given_cache(kwargs)
    past = past_length(cache)
    is_built = isinstance(prompts, Call)
    call = prompts if is_built else binding.host.resolve(prompts, task_ids, slots, cache)
    if not is_built and not call.is_empty:
        check_entry(binding.host)
    call.was_seen = True
    binding.stack.reach.follow_attention(binding.stack, binding.implementation)
    text = binding.stack.text(kwargs)
    if text is None:
        return (), {**kwargs, STATE_KEYWORD: None}
    if call.is_empty:
        return (), {**kwargs, STATE_KEYWORD: None} if hasattr(type(module), "_softprompt_base") else kwargs
    given = call
    call = call.for_batch(text.shape[0], may_repeat=is_built)
    if call.slots is not None and (binding.family == "causal" or binding.stack.name == "encoder"):
        text = fill_slots(call.slots, _embeddings(binding.stack, kwargs, text), call.selection.rows, past)
        kwargs = keep_positions(binding.stack, kwargs, text.shape[1]) if binding.family == "encoder" else kwargs
        kwargs = {**kwargs, "input_ids": None, "inputs_embeds": text}
    prepare = {"encoder": _prepare_encoder, "decoder": _prepare_decoder}[binding.stack.name]
    if binding.family == "causal":
        prepare = _prepare_causal
    kwargs, state = prepare(binding, call, kwargs, text, past)
    given.layout, given.prefix = call.layout, call.prefix
    if call.layout is not None:
        binding.host.keep_layout(call.layout)
    kwargs = anchor(module, binding.stack, state, kwargs)
    kwargs = binding.stack.reach.enter(binding.stack, state, kwargs)
    state.is_tuple_wanted = not returns_dict(module.config, kwargs)
    return (), {**kwargs, **({"return_dict": True} if state.is_tuple_wanted else {}), STATE_KEYWORD: state}


def after_forward(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Take virtual positions out of what a stack returns. A forward hook."""
    state = kwargs.get(STATE_KEYWORD)
    if not isinstance(state, CallState) or state.call is None:
        return None
    binding: Binding = getattr(module, BINDING_ATTRIBUTE)
    if state.call.layout is not None and binding.stack.name == "encoder":
        if binding.family == "encoder":
            output = cut_output(module, output, state.call.layout, state.call.pooled_rows(output[0].device))
        else:
            remember(output.last_hidden_state, state.call.layout)
    if state.cut_states is not None and output.get("cross_attentions") is not None:
        output.cross_attentions = text_only(output.cross_attentions, state.cut_states, (3,))
    output = binding.stack.reach.leave(binding.stack, output, kwargs)
    keep_state(output.get(binding.stack.cache_argument), state.call)
    if state.tails is not None:
        output = _insert_first_prediction(output, state.call, state.tails)
    return output.to_tuple() if state.is_tuple_wanted else output


def returns_dict(config: Any, kwargs: dict[str, Any]) -> bool:
    """Say whether a forward with these arguments returns a ModelOutput."""
    given = kwargs.get("return_dict")
    return bool(getattr(config, "return_dict", True) if given is None else given)


def _prepare_causal(
    binding: Binding, call: Call, kwargs: dict[str, Any], text: Tensor, past: int | Tensor
) -> tuple[dict[str, Any], CallState]:
    """Put every combination in front of a causal model's text as keys and values."""
    check_packing(binding.stack, kwargs, text.shape[1])
    counts = token_counts(call, binding.stack.name)
    kwargs, positions = _move_text(binding.stack, call, counts, kwargs, text, past)
    prefix = prefix_of(binding.stack, call, positions, past)
    state = _state({binding.stack.name: prefix.segments}, call, positions)
    if call.first_index is not None:
        state.tails = _tails(prefix, call, text)
    if call.is_training:
        call.prefix = prefix
    return kwargs, state


def _prepare_decoder(
    binding: Binding, call: Call, kwargs: dict[str, Any], text: Tensor, past: int | Tensor
) -> tuple[dict[str, Any], CallState]:
    """Prompt an encoder-decoder's decoder, and let it see the encoder's virtual positions."""
    segments = {site: _segments(call, site) for site in ("decoder", "cross")}
    counts = lengths(segments["decoder"])
    state = _state(segments, call)
    if max(counts) or state.gated["decoder"]:
        kwargs, state.positions = _move_text(binding.stack, call, counts, kwargs, text, past)
    if max(counts) and state.positions is not None:
        state.bias = relative_bias(binding.stack, state.positions, max(counts))
    if call.layout is None and kwargs.get("encoder_hidden_states") is not None:  # this call has encoded nothing
        mask = kwargs.get("encoder_attention_mask")
        states, state.cut_states = whole_states(kwargs["encoder_hidden_states"], mask, call)
        kwargs = {**kwargs, "encoder_hidden_states": states}
    return _show_virtual_positions(call, kwargs), state


def _prepare_encoder(
    binding: Binding, call: Call, kwargs: dict[str, Any], text: Tensor, past: int | Tensor
) -> tuple[dict[str, Any], CallState]:
    """Prompt a bidirectional stack: keys and values through attention, embeddings as real positions."""
    stack = binding.stack
    segments = _segments(call, "encoder")
    if stack.reads_sound:  # it has no padding, and counts its positions itself
        return kwargs, _state({"encoder": segments}, call)
    counts = lengths(segments) if binding.family == "encoder" else [0] * len(segments)
    embedded = stack_embeddings(call)
    virtual_count = 0
    if embedded is not None:
        stack.reach.refuse_attentions(stack, kwargs)
        virtual, present, virtual_counts = embedded
        if stack.minds_padding and present is not None:
            raise UnsupportedError(
                f"padding changes the states of {type(stack.module).__name__}, so rows with prompts of several "
                "lengths, or without one, would be wrong in one batch; give each length its own call"
            )
        rows = call.selection.rows
        if rows is not None:
            virtual, present = virtual[rows], None if present is None else present[rows]
        virtual = virtual.expand(text.shape[0], -1, -1)
        present = None if present is None else present.expand(text.shape[0], -1)
        kwargs, call.layout = input_embeddings.insert(virtual, present, kwargs, _embeddings(stack, kwargs, text))
        text = kwargs["inputs_embeds"]
        virtual_count = max(virtual_counts)
        check_budget(stack, text.shape[1] + max(counts), virtual_count + max(counts))
    state = _state({"encoder": segments}, call)
    if max(counts) or state.gated["encoder"]:
        kwargs, state.positions = _move_text(stack, call, counts, kwargs, text, past)
    elif max(lengths(segments)):
        state.positions = text_positions(kwargs, text.shape[1], past, text.device)
        if binding.family != "encoder" and stack.takes_position_ids:
            # Keys are rotated, so padding would move the text away from the prefix.
            kwargs = {**kwargs, "position_ids": state.positions}
    return kwargs, state


def _move_text(
    stack: Stack, call: Call, counts: list[int], kwargs: dict[str, Any], text: Tensor, past: int | Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Let the text start behind the virtual tokens; return the arguments and the text's positions."""
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
        embeddings = shift_learned_positions(stack, _embeddings(stack, kwargs, text), seen, positions)
        kwargs = {**kwargs, "input_ids": None, "inputs_embeds": embeddings}
    return kwargs, positions


def _embeddings(stack: Stack, kwargs: dict[str, Any], text: Tensor) -> Tensor:
    return text if kwargs.get("inputs_embeds") is not None else stack.embed(text)


def _segments(call: Call, site: str) -> list[Segment | None]:
    return [join([Segment.of(call.placements[name], site) for name in names]) for names in call.selection.combinations]


def _state(segments: dict[str, list[Segment | None]], call: Call, positions: Tensor | None = None) -> CallState:
    states = {site: site_state(combinations, call.is_training) for site, combinations in segments.items()}
    sites = {site: state for site, state in states.items() if state is not None}
    placements = [[call.placements[name] for name in names] for names in call.selection.combinations]
    gated = {site: gated_parts(placements, site) for site in segments}
    return CallState(sites, call.selection.rows, positions, gated=gated, call=call)


def _show_virtual_positions(call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Extend the cross-attention's mask over the virtual positions in the encoder's states."""
    embedded = stack_embeddings(call)
    states, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
    if embedded is None or states is None or (mask is not None and mask.ndim != 2):
        return kwargs
    _, present, counts = embedded
    length = states.shape[1]
    if mask is None and present is None:
        return kwargs
    if mask is not None and mask.shape[1] == length:
        return kwargs
    text = length - max(counts) if mask is None else mask.sum(dim=1, keepdim=True)
    valid = torch.arange(length, device=states.device)[None] < text + call.per_row(counts, states.device)
    valid = valid.expand(states.shape[0], -1).to(torch.long if mask is None else mask.dtype)
    return {**kwargs, "encoder_attention_mask": valid}


def _tails(prefix: Prefix, call: Call, text: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the hidden states that predict each row's first token, and which rows have one."""
    template = next((tail for tail in prefix.tails if tail is not None), None)
    if template is None:
        return None
    tails = torch.stack([torch.zeros_like(template) if tail is None else tail for tail in prefix.tails])
    rows = call.selection.rows
    tails = tails.expand(text.shape[0], -1) if rows is None else tails[rows]
    has_tail = call.per_row([tail is not None for tail in prefix.tails], text.device)
    return tails, has_tail.expand(text.shape[0], 1)


def _insert_first_prediction(output: Any, call: Call, tails: tuple[Tensor, Tensor]) -> Any:
    """Put the prompt's last hidden state where the head predicts the first text token from it."""
    states, has_tail = tails
    hidden = functional.pad(output.last_hidden_state, (0, 0, 1, 0))
    index = call.first_index[:, None, None].expand(-1, 1, hidden.shape[2])  # type: ignore[index]
    chosen = torch.where(has_tail[..., None], states[:, None].to(hidden), hidden.gather(1, index))
    output.last_hidden_state = hidden.scatter(1, index, chosen)
    return output
