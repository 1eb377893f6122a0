"""Default hooks for methods that do not implement them; pluggy calls them last."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from softprompt_zoo.backbone.backbone import Backbone
    from softprompt_zoo.config.options import MethodConfig
    from softprompt_zoo.tokens.placement import Placement
    from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

Hook = Callable[..., Any]


@hookimpl(trylast=True)
def _no_tokens() -> "VirtualTokens":
    """Build no virtual tokens."""
    from softprompt_zoo.tokens.no_tokens import NoTokens  # torch loads slowly; listing methods does not need it

    return NoTokens()


@hookimpl(trylast=True)
def _as_they_are(tokens: "VirtualTokens") -> "Placement":
    """Place the tokens unchanged, without dropout, where their kind goes."""
    from softprompt_zoo.tokens.placement import Placement  # torch loads slowly; listing methods does not need it

    return Placement(tokens)


def default_hooks(build: Hook, merged_form: str | None) -> dict[str, Hook]:
    """Make the default hooks of a method.

    Args:
        build: Its `build_virtual_tokens` without the wrappers around it, which also run around these hooks.
        merged_form: Why its prompts have no merged form; `None` if they are constant tokens.

    Returns:
        Hooks by name.
    """

    @hookimpl(trylast=True)
    def merge(config: "MethodConfig", parameters: "nn.Module", backbone: "Backbone") -> "VirtualTokens":
        """Return the tokens as they are built in eval mode."""
        if merged_form is not None:
            raise UnsupportedError(merged_form)
        found: VirtualTokens = build(config=config, parameters=parameters, backbone=backbone, text=None)
        return found

    return {"build_virtual_tokens": _no_tokens, "inject": _as_they_are, "merge": merge}
