"""Whether training would reach a prompt's parameters: checked with trial tokens before it is attached."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import PluginError
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.shapes import Shaped
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

SHOWN = 3
"""Number of names in a message."""
OTHER_READERS = ("training_loss", "map_text", "attend")
"""Hooks that may read parameters that no token depends on."""


def check_reached(prompt: Prompt, tokens: VirtualTokens, backbone: Backbone) -> None:
    """Refuse tokens through which no gradient flows, and warn about parameters that no token depends on.

    Args:
        prompt: A new prompt, in eval mode.
        tokens: The tokens that it placed while gradients were recorded.
        backbone: Sizes of the model.

    Raises:
        PluginError: If none of the parameters would be trained.
    """
    trained = {name: one for name, one in prompt.learned.named_parameters() if one.requires_grad}
    if not unreached(tokens.tensors().values(), trained) or any(prompt.has(hook) for hook in OTHER_READERS):
        return
    unread = _unread_in_training(prompt, trained, backbone)
    if len(unread) == len(trained):
        raise PluginError(
            f"{prompt.loaded.describe('build_virtual_tokens')} returned tokens through which no gradient flows, so "
            "nothing would be trained; compute them from the parameters without detach and torch.no_grad, or give "
            "parameters that should not change requires_grad=False"
        )
    if unread and prompt.beyond_tokens is None:  # only a part of them may read a text
        warnings.warn(
            f"{prompt.loaded.describe_parameters()} has {_listed(unread)}, on which no token depends, so it "
            "would never be trained; leave it out, or give it requires_grad=False if it should not change",
            stacklevel=4,
        )


def _listed(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def unreached(tensors: Iterable[Shaped[Tensor, "..."]], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of the parameters from which none of the tensors was computed, as recorded by autograd."""
    every = list(tensors)
    found = {id(tensor) for tensor in every}
    waiting = [tensor.grad_fn for tensor in every]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            leaf: Any = node
            if "variable" in vars(type(node)):
                found.add(id(leaf.variable))
            waiting += [following for following, _ in node.next_functions]
    return [name for name, parameter in parameters.items() if id(parameter) not in found]


@torch.enable_grad()
def _unread_in_training(prompt: Prompt, trained: Mapping[str, nn.Parameter], backbone: Backbone) -> list[str]:
    """Return the parameters that are not read in training mode either."""
    prompt.learned.train()
    try:
        return unreached(prompt.place(backbone).tokens.tensors().values(), trained)
    finally:
        prompt.learned.eval()
