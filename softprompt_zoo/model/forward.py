"""One forward of a prompted model: prompts are built once for all stacks, and the user sees only the text."""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model import losses, resolve
from softprompt_zoo.model.first_token_loss import wants_first_label, with_first_label
from softprompt_zoo.model.head_per_row import with_heads
from softprompt_zoo.model.untrained import note_training
from softprompt_zoo.shapes import Int
from softprompt_zoo.sites.call import CALL_KEYWORD, Call
from softprompt_zoo.sites.hooks import returns_dict
from softprompt_zoo.sites.layout import Slots
from softprompt_zoo.sites.positions import given_cache
from softprompt_zoo.sites.reach.views import with_call
from softprompt_zoo.sites.request import NOTHING, Request
from softprompt_zoo.sites.text_outputs import cut_states

IGNORED = -100
"""Label of a token that a model should not predict, in transformers."""


def prompted_forward(model: Any, function: Any, request: Request, kwargs: dict[str, Any]) -> Any:
    """Build the prompts once for all stacks, and let their methods replace the loss.

    Args:
        model: The prompted model.
        function: Its forward without prompts, which takes it as `self`.
        request: What the call asks for.
        kwargs: The arguments of `function`.

    Returns:
        What `function` returns, with the length of the text.

    Raises:
        UnknownPromptError: If a prompt does not exist.
        ValueError: If a row, a task or a slot is out of range.
        UnsupportedError: If the forward would ignore the prompts.
    """
    if request is not NOTHING:
        request = _checked(model, request, kwargs)
    call = resolve.resolve(model.prompts, request, given_cache(kwargs))
    if call.slots is not None:
        _check_decoder(model, call.slots, kwargs)
    if call.readers or call.maps:
        call = _with_text_mask(model, call, kwargs)
    if not model.training:
        return _run(model, function, call, kwargs)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        note_training(model, call, request.selection is not None, kwargs.get("labels") is not None)
    learners = losses.learners(model.prompts, call, kwargs)
    if not learners:
        return _run(model, function, call, kwargs)
    return _learn(model, function, call, learners, request.task_ids, kwargs)


def _checked(model: Any, request: Request, kwargs: dict[str, Any]) -> Request:
    """Check a request against the rows of the text: the decoder's, if an encoder's states are given instead of one."""
    names = ("input_ids", "inputs_embeds", model.main_input_name, "decoder_input_ids", "decoder_inputs_embeds")
    text = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
    if text is None and kwargs.get("encoder_outputs") is not None:
        text = kwargs["encoder_outputs"][0]
    return request if text is None else request.for_text(text.shape[0])


def _with_text_mask(model: Any, call: Call, kwargs: dict[str, Any]) -> Call:
    """Exclude the tokens that a language model should write from the text that prompts read."""
    labels, backbone = kwargs.get("labels"), model.prompts.backbone
    if call.text_mask is not None or labels is None or not (backbone.kind.is_causal and backbone.has_lm_head):
        return call
    return dataclasses.replace(call, text_mask=labels == IGNORED)


@torch.compiler.disable
def _learn(
    model: Any,
    function: Any,
    call: Call,
    learners: list[str],
    task_ids: Int[Tensor, " rows"] | None,
    kwargs: dict[str, Any],
) -> Any:
    """Run the forward and let methods replace its loss; not compiled, since they may run the model again."""
    output = _run(model, function, call, {**kwargs, "return_dict": True, "output_hidden_states": True})
    run = functools.partial(_run, model, function)
    output = losses.replace_loss(model, learners, call, {**kwargs, "task_ids": task_ids}, output, run)
    return output if returns_dict(model.config, kwargs) else output.to_tuple()


def _run(model: Any, function: Any, call: Call, kwargs: dict[str, Any]) -> Any:
    """Run the model's own forward, and return outputs with the length of the input."""
    if call.is_empty:
        return _base_forward(model, function, call, kwargs)
    wants_tuple = not returns_dict(model.config, kwargs)
    if wants_tuple:
        kwargs = {**kwargs, "return_dict": True}
    if kwargs.get("labels") is not None and wants_first_label(model, call, kwargs):
        output = _base_forward(model, function, *with_first_label(call, kwargs))
        output.logits = output.logits[:, 1:]
    else:
        output = _base_forward(model, function, call, kwargs)
    layout, is_whole = call.trace.layout, kwargs.get("encoder_outputs") is None
    if layout is not None and is_whole and model.prompts.backbone.kind.has_two_texts:
        output = cut_states(output, layout)
    return output.to_tuple() if wants_tuple else output


def _base_forward(model: Any, function: Any, call: Call, kwargs: dict[str, Any]) -> Any:
    seen = with_heads(model, call.heads, call.selection.rows) if call.heads else model
    for name in model.prompts.entry.apart:
        seen = with_call(seen, model._softprompt_stacks[name].module, call)
    output = function(seen, **kwargs, **{CALL_KEYWORD: call})
    if not call.trace.was_seen:
        raise UnsupportedError(
            f"{type(model).__name__}.forward does not pass its keywords on, so what the call says about prompts "
            "would be ignored; use the model inside"
        )
    return output


def _check_decoder(model: Any, slots: Slots, kwargs: dict[str, Any]) -> None:
    """Refuse slots in a text that the decoder reads again, shifted: it would see the placeholder ids."""
    backbone = model.prompts.backbone
    names = ("decoder_input_ids", "decoder_inputs_embeds", "labels")[: 3 if backbone.has_lm_head else 2]
    is_given = any([kwargs.get(name) is not None for name in names])
    if not backbone.kind.has_two_texts or kwargs.get("input_ids") is None or is_given:
        return
    if torch.compiler.is_compiling() or bool((slots.index >= 0).any()):
        raise UnsupportedError(
            "soft_slots puts virtual tokens into a text that the decoder of "
            f"{type(model).__name__} also reads, which cannot have any; give the decoder a separate text, "
            f"{' or '.join(names)}, or leave soft_slots out, which puts the prompt in front of the encoder's text"
        )
