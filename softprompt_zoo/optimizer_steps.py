"""Methods that correct their parameters after an optimizer's step, whoever's training loop it is."""

import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from softprompt_zoo.backbone import Backbone
from softprompt_zoo.prompt import Prompt

_WATCHED: "weakref.WeakKeyDictionary[Prompt, Backbone]" = weakref.WeakKeyDictionary()
_HANDLES: list[Any] = []


def watch(prompt: Prompt, backbone: Backbone) -> None:
    """Call the prompt's `after_step` after every step of an optimizer that holds one of its parameters.

    Args:
        prompt: A prompt; nothing happens if its method has no such hook.
        backbone: Sizes of its model.
    """
    if prompt in _WATCHED or prompt.is_merged or not prompt.loaded.has("after_step"):
        return
    _WATCHED[prompt] = backbone
    if not _HANDLES:
        _HANDLES.append(register_optimizer_step_post_hook(_after_step))


@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for prompt, backbone in list(_WATCHED.items()):
        if not prompt.is_merged and any(id(parameter) in stepped for parameter in prompt.learned.parameters()):
            prompt.loaded.call("after_step", config=prompt.config, parameters=prompt.learned, backbone=backbone)
