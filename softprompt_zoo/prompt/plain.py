"""Prompts made from existing virtual tokens."""

import dataclasses
from typing import Any

import torch
from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.options import GIVEN, MethodConfig
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.prompt.fits import check_room
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.sites.task_ids_argument import check_task
from softprompt_zoo.tokens.kinds import PlainTokens
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


@torch.no_grad()
def plain_prompt(
    tokens: VirtualTokens,
    backbone: Backbone,
    like: Placement | None = None,
    source: Prompt | None = None,
    head: nn.ModuleDict | None = None,
) -> Prompt:
    """Create a prompt from plain tokens, which can be trained, saved and added to a model.

    Args:
        tokens: Its tokens, which become parameters.
        backbone: Sizes of the model.
        like: A placement with the dropout and visibility that it should have; `None` for neither.
        source: A prompt that it was made from; gated tokens keep its method, others get one whose prompts are plain.
        head: Its trained task head.

    Returns:
        The prompt, which is not on any model.

    Raises:
        UnsupportedError: If it leaves no room for text, or no method places it like `like`.
    """
    like = Placement(tokens) if like is None else like
    common: dict[str, Any] = {"num_virtual_tokens": tokens.count, "train_head": head is not None}
    config: MethodConfig
    if source is not None and tokens.gates:
        method = source.loaded
        config = dataclasses.replace(source.config, **common)
    else:
        method = registry.holder_of(tokens)
        config = method.read_options({**common, **_known_options(like, method)})
    check_room(config, backbone)
    prompt = Prompt(method, config, PlainTokens.copied(tokens.tensors(), backbone.device), head)
    _check_placed_like(like, prompt, backbone)
    return prompt


def _known_options(like: Placement, method: LoadedMethod) -> dict[str, Any]:
    """Return those of a method's options that place a prompt like another one."""
    wanted = {
        "init": GIVEN,
        "dropout": like.dropout,
        "always_visible": like.always_visible,
        "pools_prompt": like.is_pooled,
    }
    fields = {field.name for field in dataclasses.fields(method.config_class)}
    return {name: value for name, value in wanted.items() if name in fields}


def _check_placed_like(like: Placement, prompt: Prompt, backbone: Backbone) -> None:
    placed = prompt.place(backbone).options
    for name, expected in like.options.items():
        if placed[name] != expected:
            raise UnsupportedError(
                f"the prompts have {name}={expected}, which plain prompts of the method {prompt.method!r} cannot have "
                f"({placed[name]}); keep the prompts apart"
            )


def one_task(tokens: VirtualTokens, task_id: int, name: str) -> VirtualTokens:
    """Return one task's tokens from those of a prompt with tasks.

    Args:
        tokens: The plain tokens.
        task_id: The task.
        name: The prompt's name, for messages.

    Returns:
        Tokens `(tokens, hidden)`.

    Raises:
        ValueError: If the prompt does not have that task.
    """
    if tokens.num_tasks is None:
        raise ValueError(f"task is {task_id!r}, but prompt {name!r} has no tasks; leave it out")
    check_task(task_id, tokens.num_tasks, name)
    return tokens.task(task_id)
