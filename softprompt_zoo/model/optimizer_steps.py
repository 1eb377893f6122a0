"""What happens after an optimizer's step, whoever's training loop it is: a method's correction, a missing rate told."""

import warnings
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.prompt.prompt import Prompt

_WATCHED: "weakref.WeakKeyDictionary[Prompt, Backbone]" = weakref.WeakKeyDictionary()
_COMPARED: "weakref.WeakSet[Prompt]" = weakref.WeakSet()
"""Prompts whose rates were looked at, in their first step."""
_HANDLES: list[Any] = []


def watch(prompt: Prompt, backbone: Backbone) -> None:
    """Look at every step of an optimizer that holds one of the prompt's parameters.

    After each, its method's `after_step` is called. After the first, a warning tells if the method asks for several
    learning rates and the optimizer has one group for them.

    Args:
        prompt: A prompt; nothing happens if its method has neither hook.
        backbone: Sizes of its model.
    """
    has_hook = prompt.loaded.has("after_step") or prompt.loaded.has("parameter_groups")
    if prompt in _WATCHED or prompt.is_merged or not has_hook:
        return
    _WATCHED[prompt] = backbone
    if not _HANDLES:
        _HANDLES.append(register_optimizer_step_post_hook(_after_step))


@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    groups = {id(parameter): i for i, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
    for prompt, backbone in list(_WATCHED.items()):
        if not prompt.is_merged and any(id(parameter) in groups for parameter in prompt.learned.parameters()):
            if prompt not in _COMPARED:
                _COMPARED.add(prompt)
                _compare_rates(prompt, groups)
            prompt.loaded.call("after_step", config=prompt.config, parameters=prompt.learned, backbone=backbone)


def _compare_rates(prompt: Prompt, groups: dict[int, int]) -> None:
    """Warn if the optimizer has one group for parameters that the method trains at several rates."""
    rates: dict[int, set[float]] = {}
    for group in prompt.own_groups(1.0):
        for parameter in group["params"]:
            if id(parameter) in groups:
                rates.setdefault(groups[id(parameter)], set()).add(group.get("lr", 1.0))
    mixed = next((sorted(found) for found in rates.values() if len(found) > 1), None)
    if mixed is not None:
        shown = ", ".join(f"{rate:.4g}" for rate in mixed)
        warnings.warn(
            f"a prompt of the method {prompt.method!r} asks for learning rates of {shown} times the chosen one, and "
            "this optimizer trains it at one; use softprompt_zoo.training.PromptTrainer, or give the optimizer "
            "model.prompts.parameter_groups(learning_rate)",
            stacklevel=2,
        )
