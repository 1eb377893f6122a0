"""What happens after an optimizer's step, in any training loop: a method's correction, a warning of missing rates."""

import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.prompt.parameter_groups import own_groups
from softprompt_zoo.prompt.prompt import Prompt

_WATCHED: "weakref.WeakKeyDictionary[Prompt, Backbone]" = weakref.WeakKeyDictionary()
_COMPARED: "weakref.WeakSet[Prompt]" = weakref.WeakSet()
"""Prompts whose rates have been checked, in their first step."""
_HANDLES: list[Any] = []


def watch(prompt: Prompt, backbone: Backbone) -> None:
    """Watch every step of an optimizer that holds one of the prompt's parameters.

    After each step, its method's `after_step` is called. After the first, a warning is given if the method asks for
    several learning rates and the optimizer has one group for them.

    Args:
        prompt: A prompt; nothing happens if its method has neither hook.
        backbone: Sizes of its model.
    """
    if prompt in _WATCHED or prompt.is_merged:
        return
    if not (prompt.has("after_step") or prompt.has("parameter_groups")):
        return
    _WATCHED[prompt] = backbone
    if not _HANDLES:
        _HANDLES.append(register_optimizer_step_post_hook(_after_step))


def trained_groups(prompt: Prompt, learning_rate: float) -> list[dict[str, Any]]:
    """Split the trained parameters of a prompt into an optimizer's groups: those its method asks for, and the rest.

    Args:
        prompt: The prompt.
        learning_rate: The rate of groups that do not set one.

    Returns:
        The groups in which something is trained.
    """
    split = own_groups(prompt, learning_rate)
    every = (*split, {"params": _others(prompt, split)})
    groups = [{"lr": learning_rate, **group, "params": _trained(group["params"])} for group in every]
    return [group for group in groups if group["params"]]


def _others(prompt: Prompt, groups: Iterable[Mapping[str, Any]]) -> list[nn.Parameter]:
    """Return the parameters of a prompt that are in none of the groups."""
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    return [parameter for parameter in prompt.parameters() if id(parameter) not in grouped]


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    groups = _groups(optimizer)
    for prompt, backbone in list(_WATCHED.items()):
        if _is_stepped(prompt, groups):
            if prompt not in _COMPARED:
                _COMPARED.add(prompt)
                _compare_rates(prompt, groups)
            prompt.call("after_step", backbone=backbone)


def _is_stepped(prompt: Prompt, groups: dict[int, int]) -> bool:
    """Return whether an optimizer with these groups trains a prompt that still has its scaffold."""
    return not prompt.is_merged and any(id(parameter) in groups for parameter in prompt.learned.parameters())


def _rates(prompt: Prompt, groups: dict[int, int]) -> dict[int, set[float]]:
    """Return the rates that a method asks for, by the optimizer's group that holds their parameters."""
    rates: dict[int, set[float]] = {}
    for group in own_groups(prompt, 1.0):
        for parameter in group["params"]:
            if id(parameter) in groups:
                rates.setdefault(groups[id(parameter)], set()).add(group.get("lr", 1.0))
    return rates


def _compare_rates(prompt: Prompt, groups: dict[int, int]) -> None:
    """Warn if the optimizer has one group for parameters that the method trains at several rates."""
    rates = _rates(prompt, groups)
    mixed = next((sorted(found) for found in rates.values() if len(found) > 1), None)
    if mixed is not None:
        shown = ", ".join(f"{rate:.4g}" for rate in mixed)
        warnings.warn(
            f"a prompt of the method {prompt.method!r} asks for learning rates of {shown} times the chosen one, but "
            "this optimizer trains it at one; use softprompt_zoo.training.PromptTrainer, or give the optimizer "
            "model.prompts.parameter_groups(learning_rate)",
            stacklevel=2,
        )


def _groups(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """Return the index of each parameter's group, by the parameter's id."""
    return {id(parameter): i for i, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
