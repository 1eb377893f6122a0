"""Modules once more: modules and configs of their own around the same tensors.

What is set on them, such as another attention function, eval mode or a hook, no other thread sees.
"""

import copy
import dataclasses
from typing import Any

from torch import nn

from softprompt_zoo.backbone import Stack
from softprompt_zoo.sites.stack import BINDING_ATTRIBUTE
from softprompt_zoo.sites.views import view


def twin(model: Any) -> Any:
    """Make a twin of a prompted model, in eval mode.

    Args:
        model: The model. Not changed.

    Returns:
        A model that shares its tensors and attributes, but no module, and no config that a module has.
    """
    made = twins(model)
    stacks = {name: _of_stack(stack, made) for name, stack in model._softprompt_stacks.items()}
    result = made[id(model)]
    result.__dict__["_softprompt_stacks"] = stacks
    for stack in stacks.values():
        own = stack.module.__dict__
        own[BINDING_ATTRIBUTE] = dataclasses.replace(own[BINDING_ATTRIBUTE], stack=stack, host=result.prompts)
    return result


def twins(root: nn.Module) -> dict[int, Any]:
    """Make twins of a module and of all below it, in eval mode.

    Args:
        root: The module. Not changed.

    Returns:
        From the id of each of the modules to its twin.
    """
    modules = list(root.modules())
    # Compiled code would run on the original.
    made = {id(module): view(module, training=False, _compiled_call_impl=None) for module in modules}
    configs: dict[int, Any] = {}
    for module in modules:
        own = made[id(module)].__dict__
        own |= {name: copy.copy(value) for name, value in own.items() if "hooks" in name and isinstance(value, dict)}
        own["_modules"] = {name: made.get(id(child), child) for name, child in module._modules.items()}
        config = own.get("config")
        if hasattr(config, "_attn_implementation_internal"):
            own["config"] = configs.setdefault(id(config), copy.copy(config))
    return made


def _of_stack(stack: Stack, made: dict[int, Any]) -> Stack:
    attentions = {site: tuple(made[id(module)] for module in found) for site, found in stack.attentions.items()}
    return dataclasses.replace(stack, module=made[id(stack.module)], attentions=attentions)
