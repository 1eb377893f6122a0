"""The attention functions of transformers to which prompts can be added, and the names of ours."""

import sys

from torch import nn

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.gates import Attention
from softprompt_zoo.sites.reach.block_masks import FLEX

PREFIX = "softprompt_zoo_"
IMPLEMENTATIONS = ("eager", "sdpa", FLEX)


def prompted_implementation(base: str) -> str:
    """Name the attention function that adds prompts to a base implementation.

    Args:
        base: transformers' name of the implementation.

    Returns:
        The name under which ours is registered.

    Raises:
        UnsupportedError: If prompts cannot be added to it.
    """
    if base not in IMPLEMENTATIONS:
        raise UnsupportedError(
            f"prompts cannot be added to the attention implementation {base!r}; expected one of "
            f"{', '.join(map(repr, IMPLEMENTATIONS))} (FlashAttention takes no mask, so it cannot hide a prompt "
            'from other rows); call model.set_attn_implementation("sdpa") first'
        )
    return PREFIX + base


def base_implementation(name: str) -> str:
    """Undo `prompted_implementation`; other names are returned unchanged."""
    return name.removeprefix(PREFIX)


def eager_function(module: nn.Module) -> Attention:
    """Return the eager attention function of a module's own modeling file.

    Raises:
        UnsupportedError: If there is none.
    """
    # Every modeling file has its own eager function; FSDP puts its own class in front.
    for owner in type(module).__mro__:
        function = getattr(sys.modules.get(owner.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    raise UnsupportedError(f"{type(module).__name__} has no eager attention function; use 'sdpa'")
