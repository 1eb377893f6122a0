"""The hooks of a method that has none of its own: the host's, called last, as pluggy orders it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from softprompt_zoo.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from softprompt_zoo.backbone.backbone import Backbone
    from softprompt_zoo.config.method_config import MethodConfig
    from softprompt_zoo.tokens.placement import Placement
    from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def default_hooks(build: Callable[..., "VirtualTokens"]) -> dict[str, Callable[..., Any]]:
    """Make the default hooks of a method.

    Args:
        build: Its `build_virtual_tokens`, without the wrappers around it: they run around these hooks, too.

    Returns:
        Hooks by name.
    """

    @hookimpl(trylast=True)
    def inject(tokens: "VirtualTokens") -> "Placement":
        """Place the tokens as they are, without dropout, where their kind goes."""
        from softprompt_zoo.tokens.placement import Placement  # torch is slow to load, and listing methods does without

        return Placement(tokens)

    @hookimpl(trylast=True)
    def merge(config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone") -> "VirtualTokens":
        """Return the tokens as they are built in eval mode."""
        return build(config=config, parameters=parameters, backbone=backbone)

    return {"inject": inject, "merge": merge}
