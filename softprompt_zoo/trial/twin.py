"""Twins of modules: new modules and configs around the same tensors.

Changes to them, such as another attention function, eval mode or a hook, are invisible to other threads.
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from softprompt_zoo.backbone.lookup import has_parts
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.views import view
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.stack_facts import BINDING_ATTRIBUTE


def twin(model: Any) -> Any:
    """Make a twin of a prompted model, in eval mode.

    Args:
        model: The model. Not changed.

    Returns:
        A model that shares the original's tensors and attributes, but none of its modules or their configs.

    Raises:
        UnsupportedError: Like `twins`.
    """
    sites = [found for stack in model._softprompt_stacks.values() for found in stack.attentions.values()]
    attentions = itertools.chain.from_iterable(sites)
    made = twins(model, attentions)
    stacks = {name: _of_stack(stack, made) for name, stack in model._softprompt_stacks.items()}
    result = made[id(model)]
    result.__dict__["_softprompt_stacks"] = stacks
    for stack in stacks.values():
        own = stack.module.__dict__
        own[BINDING_ATTRIBUTE] = dataclasses.replace(own[BINDING_ATTRIBUTE], stack=stack, prompts=result.prompts)
    return result


def twins(root: nn.Module, attentions: Iterable[nn.Module]) -> dict[int, Any]:
    """Make twins of a module and all its submodules, in eval mode.

    Args:
        root: The module. Not changed.
        attentions: The submodules whose twins are to be called.

    Returns:
        The id of each module to its twin.

    Raises:
        UnsupportedError: If a forward set on a module itself would call them instead of their twins.
    """
    called = {id(module) for module in attentions}
    modules = list(root.modules())
    # Compiled code would run on the original.
    made = {id(module): view(module, training=False, _compiled_call_impl=None) for module in modules}
    configs: dict[int, Any] = {}
    for module in modules:
        _let_go_of_forward(module, made[id(module)].__dict__, called)
        _let_go_of_parts(module, made, configs)
    return made


def _let_go_of_parts(module: nn.Module, made: Mapping[int, Any], configs: dict[int, Any]) -> None:
    """Give a twin the twins of its submodules, and copies of mutable attributes."""
    own = made[id(module)].__dict__
    own |= {name: copy.copy(own[name]) for name in own if _is_copied(name, own[name])}
    own["_modules"] = {name: made.get(id(child), child) for name, child in module._modules.items()}
    if has_parts(own.get("config"), "_attn_implementation_internal"):
        own["config"] = configs.setdefault(id(own["config"]), copy.copy(own["config"]))


def _is_copied(name: str, value: Any) -> bool:
    """Return whether a module's attribute is a dictionary that its twin may write to: hooks and buffers."""
    return isinstance(value, dict) and ("hooks" in name or name == "_buffers")


def _let_go_of_forward(module: nn.Module, own: dict[str, Any], called: set[int]) -> None:
    """Remove a compiled forward, which runs on the original, from a twin; refuse others that would call attention."""
    if own.get("forward") is None or own["forward"] is not module.__dict__["forward"]:
        return  # the class's, or bound to the twin
    if hasattr(own["forward"], "_torchdynamo_orig_callable"):
        del own["forward"]
    elif any(id(child) in called for child in module.modules()):
        name = getattr(own["forward"], "__qualname__", type(own["forward"]).__qualname__)
        raise UnsupportedError(
            f"the forward of {type(module).__name__} was replaced by {name}, which holds that very module, so its "
            "attention cannot be inspected while others run it; delete that module's forward, and replace it again "
            "afterwards"
        )


def _of_stack(stack: Stack, made: dict[int, Any]) -> Stack:
    attentions = {site: tuple(made[id(module)] for module in found) for site, found in stack.attentions.items()}
    return dataclasses.replace(stack, module=made[id(stack.module)], attentions=attentions)
