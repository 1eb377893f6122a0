"""Attach prompts to a model and detach them: the model stays the user's own, and of its own class."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.eval_mode import attention_configs
from softprompt_zoo.backbone.lookup import config_value, part_of
from softprompt_zoo.backbone.peft_layers import adapter_parameters, model_inside, original_name
from softprompt_zoo.backbone.quantized import keep_unpacked
from softprompt_zoo.backbone.replaced_forward import check_forward, restore
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model.entry import Entry
from softprompt_zoo.model.prompted_model import PromptedModel, prompted_class, rebind_forward
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.sites.hooks import bind, unbind
from softprompt_zoo.sites.reach.attention_in_config import restore_attention
from softprompt_zoo.sites.stack import Stack

_ATTACHED: "weakref.WeakSet[PreTrainedModel]" = weakref.WeakSet()


def attached_prompts(model: object) -> Prompts | None:
    """Return the prompts of a model, or of the model inside a `PeftModel`; `None` if it has none."""
    inside: Any = model if isinstance(model, PromptedModel) else model_inside(model)
    return inside.prompts if isinstance(inside, PromptedModel) else None


def is_attached(model: object) -> bool:
    """Return whether a model, or the model inside a `PeftModel`, has prompts."""
    return attached_prompts(model) is not None


def attach(
    model: PreTrainedModel, backbone: Backbone, stacks: Mapping[str, Stack], ready: Mapping[str, Prompt]
) -> Prompts:
    """Freeze a model and add prompts to it; the first step that changes the model, and one that cannot fail halfway.

    Args:
        model: The user's model, or a `PeftModel` around it. Changed in place; PEFT's adapters stay trainable.
        backbone: From `examine`.
        stacks: From `examine`.
        ready: Prompts by name; none is activated.

    Returns:
        The model's prompts.

    Raises:
        UnsupportedError: If the model has a custom forward that prompts cannot enter. Nothing is changed.
    """
    check_forward(model_inside(model))
    if model_inside(model) is not model:
        from softprompt_zoo.files import peft_wrapper

        peft_wrapper.wrap(model)
        model = model_inside(model)
    prompts = Prompts(backbone, type(model).__name__, config_value(model.config, "_name_or_path") or None)
    prompts.entry = Entry.of(model, stacks)
    prompts.train(model.training)
    for name, prompt in ready.items():
        prompts.insert(name, prompt)
    prompted: Any = model
    prompted._softprompt_required_grad = {name: p.requires_grad for name, p in _named_parameters(model)}
    prompted._softprompt_stacks = dict(stacks)
    _freeze(model)
    for stack in stacks.values():
        stack.reach.install(stack, model)
        bind(backbone.family, stack, prompts)
    model.add_module("prompts", prompts)
    prompts.entry.branch_inputs.follow(prompts.values())
    prompted.__class__ = prompted_class(prompted.__class__)
    rebind_forward(model)
    if part_of(model, "is_quantized", False) and _trains(prompts):
        keep_unpacked(model)
    _ATTACHED.add(model)
    return prompts


def attach_or_add(
    model: PreTrainedModel, backbone: Backbone, stacks: Mapping[str, Stack], ready: Mapping[str, Prompt]
) -> Prompts:
    """Add prompts to those of a model, or attach them if it has none; otherwise as `attach`."""
    prompts = attached_prompts(model)
    if prompts is None:
        return attach(model, backbone, stacks, ready)
    for name, prompt in ready.items():
        prompts.insert(name, prompt)
    return prompts


def _trains(prompts: Prompts) -> bool:
    return any(prompt.is_trained for prompt in prompts.values())


def _freeze(model: PreTrainedModel) -> None:
    """Freeze all but PEFT's adapters."""
    adapted = {name for name, _ in adapter_parameters(model)}
    for name, parameter in model.named_parameters():
        if name not in adapted:
            parameter.requires_grad_(False)


def prompts_of(model: Any, action: str) -> Prompts:
    """Return a model's prompts.

    Args:
        model: Any model.
        action: What should be done with them, for the message.

    Returns:
        The prompts.

    Raises:
        UnsupportedError: If it has none.
    """
    prompts = attached_prompts(model)
    if prompts is None:
        raise UnsupportedError(
            f"{type(model).__name__} has no prompts to {action}; attach one with zoo.get_method(name)(model)"
        )
    return prompts


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Remove all prompts from a model.

    Args:
        model: A model with prompts. Changed in place.

    Returns:
        The same model as before: class, outputs, `requires_grad`, `state_dict` keys, attention implementation.

    Raises:
        UnsupportedError: If it has no prompts.
    """
    given: Any = model
    model = model_inside(given)
    prompts_of(model, "detach")
    stacks = model._softprompt_stacks
    for stack in stacks.values():
        unbind(stack)
    del model.prompts
    restore(model)
    model.__class__ = model._softprompt_base
    for stack in stacks.values():
        stack.reach.remove(stack)
    _unfreeze(model, model._softprompt_required_grad)
    del model._softprompt_stacks, model._softprompt_required_grad
    _ATTACHED.discard(model)
    restore_attention(_own_configs(model))
    if given is not model:
        from softprompt_zoo.files import peft_wrapper

        peft_wrapper.unwrap(given)
    return given


def _unfreeze(model: PreTrainedModel, required_grad: Mapping[str, bool]) -> None:
    """Restore which parameters require gradients."""
    for name, parameter in _named_parameters(model):
        if name in required_grad:  # otherwise it came later, with an adapter
            parameter.requires_grad_(required_grad[name])


def _own_configs(model: PreTrainedModel) -> list[Any]:
    """Return the configs that a model shares with no prompted model: those still need our attention function."""
    shared = {id(config) for other in _ATTACHED for config in attention_configs(other)}
    return [config for config in attention_configs(model) if id(config) not in shared]


def _named_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """List parameters by names that an adapter does not change; the parameters themselves may be replaced."""
    return [(original_name(name), p) for name, p in model.named_parameters(remove_duplicate=False)]
