"""How a stack is built: findings about one hold for all that are built alike, which need not be tested again."""

from collections.abc import Hashable
from typing import Any

from torch import nn

REMEMBERED = 256
"""Maximum number of stacks whose findings are remembered."""
_PLAIN = (bool, int, float, str)


def built(module: Any) -> Hashable | None:
    """Describe how a stack is built.

    Args:
        module: Its module.

    Returns:
        A description that equals that of any stack built alike, whatever its weights; `None` if the behavior of its
        modules was changed.
    """
    parts = list(module.named_modules())
    if any(_is_changed(part) for _, part in parts):
        return None
    config = module.config
    return tuple((name, *_of_part(part)) for name, part in parts), repr(config.to_dict()), config._attn_implementation


def remember(memory: dict[Any, Any], key: Hashable, found: Any) -> None:
    """Remember the findings about a stack; a full memory is cleared first."""
    if len(memory) >= REMEMBERED:
        memory.clear()
    memory[key] = found


def _of_part(part: nn.Module) -> tuple[Any, ...]:
    """Return a module's class, and the shapes, dtypes and devices of its own tensors."""
    kind: Any = type(part)
    plain = tuple([item for item in part.__dict__.items() if type(item[1]) in _PLAIN and item[0] != "training"])
    own = [(name, tensor) for name, tensor in part._parameters.items() if tensor is not None]
    forms = tuple([(name, tensor.shape, tensor.dtype, tensor.device.type) for name, tensor in own])
    return kind, kind.forward, plain, forms


def _is_changed(part: nn.Module) -> bool:
    return bool("forward" in part.__dict__ or part._forward_hooks or part._forward_pre_hooks)
