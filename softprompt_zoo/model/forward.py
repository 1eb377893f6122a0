"""One forward of a prompted model: prompts are built once for all stacks, and the user sees the text alone."""

import functools
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.traits import given_cache
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model import losses
from softprompt_zoo.model.first_token_loss import wants_first_label, with_first_label
from softprompt_zoo.model.head_per_row import with_heads
from softprompt_zoo.model.untrained import note_training
from softprompt_zoo.sites.call import Call, Slots
from softprompt_zoo.sites.hooks import returns_dict
from softprompt_zoo.sites.tasks import check_task_ids, spread_task_ids
from softprompt_zoo.sites.text_outputs import cut_output


def prompted_forward(model: Any, function: Any, own: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """Build the prompts once for all stacks, and let their methods replace the loss.

    Args:
        model: The prompted model.
        function: Its forward without prompts, which takes it as `self`.
        own: The arguments that `function` does not have: `prompts`, `task_ids`, `soft_slots`.
        kwargs: The others.

    Returns:
        What `function` returns, of the length of the text.

    Raises:
        ValueError: If an entry, a task or a slot is out of range.
        UnsupportedError: If the forward would ignore the prompts.
    """
    names = ("input_ids", "inputs_embeds", model.main_input_name)
    text = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
    own["task_ids"] = check_task_ids(own["task_ids"])
    if own["task_ids"] is not None and text is not None:
        own["task_ids"] = spread_task_ids(own["task_ids"], text.shape[0])
    call = model.prompts.resolve(*own.values(), given_cache(kwargs))
    rows = call.selection.rows
    if rows is not None and text is not None:
        check_rows(rows.shape[0], text.shape[0])
    if call.slots is not None:
        _check_decoder(model, call.slots, kwargs)
    if model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        note_training(model, call, own["prompts"] is not None, kwargs.get("labels") is not None)
    learners = losses.learners(model.prompts, call, kwargs) if model.training else []
    if not learners:
        return _run(model, function, call, kwargs)
    return _learn(model, function, call, learners, own["task_ids"], kwargs)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _learn(
    model: Any, function: Any, call: Call, learners: list[str], task_ids: Tensor | None, kwargs: dict[str, Any]
) -> Any:
    """Run the forward and let methods replace its loss; not compiled, for they may run the model once more."""
    output = _run(model, function, call, {**kwargs, "return_dict": True, "output_hidden_states": True})
    run = functools.partial(_run, model, function)
    output = losses.replace_loss(model, learners, call, {**kwargs, "task_ids": task_ids}, output, run)
    return output if returns_dict(model.config, kwargs) else output.to_tuple()


def _run(model: Any, function: Any, call: Call, kwargs: dict[str, Any]) -> Any:
    """Run the model's own forward, and show the user outputs of the length of the input."""
    if call.is_empty:
        return _base_forward(model, function, call, kwargs)
    wants_first = wants_first_label(model, call, kwargs)
    wants_tuple = not returns_dict(model.config, kwargs)
    if wants_first:
        kwargs = with_first_label(call, kwargs)
    output = _base_forward(model, function, call, {**kwargs, "return_dict": True} if wants_tuple else kwargs)
    if wants_first:
        output.logits = output.logits[:, 1:]
    if call.layout is not None and model.prompts.backbone.kind.has_two_texts and kwargs.get("encoder_outputs") is None:
        output = cut_output(None, output, call.layout)
    return output.to_tuple() if wants_tuple else output


def _base_forward(model: Any, function: Any, call: Call, kwargs: dict[str, Any]) -> Any:
    seen = with_heads(model, call.heads, call.selection.rows)
    for stack in model._softprompt_stacks.values():
        seen = stack.reach.hand_over(seen, stack, call)
    output = function(seen, prompts=call, **kwargs)
    if not call.was_seen:
        raise UnsupportedError(
            f"{type(model).__name__}.forward does not hand its keywords on, so what the call says of prompts would be "
            "ignored; use the model inside"
        )
    return output


def _check_decoder(model: Any, slots: Slots, kwargs: dict[str, Any]) -> None:
    """Refuse slots in a text that the decoder reads once more, shifted: it would see the ids that hold the places."""
    names = ("decoder_input_ids", "decoder_inputs_embeds", *(["labels"] if model.prompts.backbone.has_lm_head else []))
    is_given = any([kwargs.get(name) is not None for name in names])
    if not model.prompts.backbone.kind.has_two_texts or kwargs.get("input_ids") is None or is_given:
        return
    if torch.compiler.is_compiling() or bool((slots.index >= 0).any()):
        raise UnsupportedError(
            "soft_slots has virtual tokens in a text that the decoder of "
            f"{type(model).__name__} reads, too, where none can stand; give it a text of its own, "
            f"{' or '.join(names)}, or leave soft_slots out, which puts the prompt in front of the encoder's text"
        )


def check_rows(entries: int, rows: int) -> None:
    """Refuse a `prompts` argument of another number of rows than the batch."""
    if entries != rows:
        raise ValueError(
            f"prompts has {entries} entries for a batch of {rows} rows; give one entry per row: a prompt's name, "
            "a list of names, or None"
        )
