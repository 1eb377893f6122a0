"""All kinds of virtual tokens, and a module that holds any kind.

A new kind that enters a model where the others do is a new file and a line here. One that enters in a new way, as gates
and scores do, also needs a property of `VirtualTokens`, and code in `sites/` that uses it.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from softprompt_zoo.errors import ShapeError
from softprompt_zoo.tokens.gated_tokens import GatedTokens
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.scored_tokens import ScoredTokens
from softprompt_zoo.tokens.task_tokens import TaskTokens
from softprompt_zoo.tokens.virtual_tokens import Shapes, Sizes, VirtualTokens

KINDS: tuple[type[VirtualTokens], ...] = (TaskTokens, InputTokens, ScoredTokens, GatedTokens, LayerTokens)
"""All of them; a narrower kind comes before a wider one."""


def check_virtual_tokens(tokens: object, sizes: Sizes, count: int, num_tasks: int | None, source: str) -> None:
    """Check what a hook returned against a model's sizes.

    Args:
        tokens: What the hook returned.
        sizes: Sizes of the model.
        count: Virtual tokens that the prompt is to have.
        num_tasks: Its tasks; `None` if it has none.
        source: Plugin and hook, for the message.

    Raises:
        ShapeError: If they are not virtual tokens, or have a wrong shape or dtype.
    """
    if not isinstance(tokens, VirtualTokens):
        raise ShapeError(
            f"{source} returned {type(tokens).__name__}; expected softprompt_zoo.InputTokens or LayerTokens"
        )
    tokens.check(sizes, count, num_tasks, source)


def narrowed(tokens: VirtualTokens) -> VirtualTokens:
    """Return tokens as the narrowest matching kind: a plugin may return any as `InputTokens` or `LayerTokens`."""
    for kind in KINDS:
        found = kind.narrow(tokens)
        if found is not None:
            return found
    return tokens


def from_tensors(tensors: Mapping[str, Tensor], sizes: Sizes) -> VirtualTokens:
    """Undo `VirtualTokens.tensors`.

    Args:
        tensors: Named tensors.
        sizes: Sizes of the model that the tokens are for.

    Returns:
        The virtual tokens; gradients flow to `tensors`.

    Raises:
        ShapeError: If the shapes do not match the model.
    """
    for kind in KINDS:
        is_named = any(re.search(kind.stored_name, name) for name in tensors)
        found = kind.read(tensors, sizes) if is_named else None
        if found is not None:
            return found
    raise ShapeError(f"the tensors {', '.join(map(repr, tensors))} are not those of virtual tokens")


def stored_shapes(names: Iterable[str], sizes: Sizes, count: int, num_tasks: int | None) -> Shapes:
    """Return the shapes of the tensors with the given names.

    Args:
        names: Names of tensors; those that no kind has are left out.
        sizes: Sizes of the model.
        count: Virtual tokens of the prompt.
        num_tasks: Its tasks; `None` if it has none.

    Returns:
        Name to shape; gates with one number per head.
    """
    shapes: Shapes = {}
    for kind in KINDS:
        shapes |= kind.stored_shapes(sizes, count, num_tasks)
    return {name: shapes[name] for name in names if name in shapes}


class PlainTokens(nn.Module):
    """Plain virtual tokens, as held by a merged or imported prompt."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tensors = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})

    @classmethod
    def copied(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "PlainTokens":
        """Make parameters from copies of tensors, which may be views of a file that other programs overwrite or cut."""
        return cls({name: tensor.detach().to(device, copy=True).contiguous() for name, tensor in tensors.items()})

    def tokens(self, sizes: Sizes) -> VirtualTokens:
        """Return them as virtual tokens; gradients flow to the parameters."""
        return from_tensors(dict(self.tensors.items()), sizes)
