"""The initial values of a new prompt: those of its method, or of another prompt."""

from typing import Any

import torch
from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.prompt.fits import fitting, fitting_tokens
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def initialize(
    method: LoadedMethod,
    config: MethodConfig,
    learned: Any,
    head: nn.ModuleDict | None,
    backbone: Backbone,
    start: Prompt | None,
) -> None:
    """Set the initial values of a new prompt.

    Args:
        method: Its method.
        config: What the user chose.
        learned: The method's `Parameters`. Changed in place.
        head: The prompt's task head, if any; it starts from the other prompt's, if that has the same classes.
        backbone: Sizes of the model.
        start: The prompt to start from; `None` for the method's own initial values.

    Raises:
        ValueError: If `start` is a prompt of a different length.
        BackboneMismatchError: If it was made for a model of different sizes.
        UnsupportedError: If the method cannot start from `init`.
    """
    learned.eval()  # a network is fitted without its dropout; the caller sets the mode
    if start is None:
        method.initialize(learned, config, backbone)
        return
    if not hasattr(learned, "start_from"):
        raise UnsupportedError(f"method {method.name!r} cannot start from another prompt; choose another init")
    _check_length(start, config)
    with fitting("init is a prompt for a model of different sizes", "; give one made for this model's sizes"):
        tokens = fitting_tokens(start, backbone, "the init prompt")
    _start_head(head, start.head)
    is_own = start.method == method.name and not start.is_merged
    if is_own and hasattr(learned, "start_from_parameters"):
        learned.start_from_parameters(start.learned, config)
    else:
        _check_tasks(config, tokens, method)
        learned.start_from(tokens)


def _check_length(start: Prompt, config: MethodConfig) -> None:
    if start.num_virtual_tokens != config.num_virtual_tokens:
        raise ValueError(
            f"init is a prompt of {start.num_virtual_tokens} virtual tokens; set num_virtual_tokens to that, "
            f"not {config.num_virtual_tokens}"
        )


def _check_tasks(config: MethodConfig, tokens: VirtualTokens, method: LoadedMethod) -> None:
    if config.tasks is None and tokens.num_tasks is not None:
        raise UnsupportedError(
            f"init is a prompt with {tokens.num_tasks} tasks, but {method.name!r} has none; export the "
            "one you want, zoo.export(model, folder, task=…), and give that folder"
        )


def _start_head(head: nn.ModuleDict | None, start: nn.ModuleDict | None) -> None:
    if head is None or start is None:
        return
    if _shapes(head) == _shapes(start):
        head.load_state_dict(start.state_dict())


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in module.state_dict().items()}
