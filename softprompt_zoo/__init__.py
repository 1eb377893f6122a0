"""One home for soft-prompt methods on Hugging Face transformers."""

import importlib
from typing import TYPE_CHECKING, Any

from softprompt_zoo import errors
from softprompt_zoo.config import MethodConfig as MethodConfig
from softprompt_zoo.config import Recipe as Recipe
from softprompt_zoo.config import check_choice as check_choice
from softprompt_zoo.config import check_not_negative as check_not_negative
from softprompt_zoo.config import check_positive as check_positive
from softprompt_zoo.config import check_positive_integer as check_positive_integer
from softprompt_zoo.config import check_probability as check_probability
from softprompt_zoo.errors import *  # noqa: F403
from softprompt_zoo.hookspecs import hookimpl as hookimpl

if TYPE_CHECKING:  # "as" exports a name to the type checkers of plugins
    from softprompt_zoo.backbone import Backbone as Backbone
    from softprompt_zoo.bank import PromptBank as PromptBank
    from softprompt_zoo.base_models import load_model as load_model
    from softprompt_zoo.blending import blend as blend
    from softprompt_zoo.comparing import most_similar as most_similar
    from softprompt_zoo.comparing import similarity as similarity
    from softprompt_zoo.encoding import encode as encode
    from softprompt_zoo.exchange import PeftFiles as PeftFiles
    from softprompt_zoo.exchange import PeftPrompt as PeftPrompt
    from softprompt_zoo.folding import fold as fold
    from softprompt_zoo.initialization import check_init as check_init
    from softprompt_zoo.initialization import sampled_ids as sampled_ids
    from softprompt_zoo.inspection import inspect as inspect
    from softprompt_zoo.method import Method as Method
    from softprompt_zoo.method import combine as combine
    from softprompt_zoo.method import get_method as get_method
    from softprompt_zoo.model import detach as detach
    from softprompt_zoo.saved_config import read_config as read_config
    from softprompt_zoo.saving import export as export
    from softprompt_zoo.saving import load as load
    from softprompt_zoo.saving import merge as merge
    from softprompt_zoo.tokens import InputTokens as InputTokens
    from softprompt_zoo.tokens import LayerTokens as LayerTokens
    from softprompt_zoo.tokens import Placement as Placement
    from softprompt_zoo.tokens import SiteTokens as SiteTokens
    from softprompt_zoo.tokens import VirtualTokens as VirtualTokens
    from softprompt_zoo.tokens import flatten_layers as flatten_layers
    from softprompt_zoo.tokens import unflatten_layers as unflatten_layers
    from softprompt_zoo.training_step import TrainingStep as TrainingStep
    from softprompt_zoo.truncation import truncate as truncate

_LAZY = {
    "Backbone": "backbone",
    "InputTokens": "tokens",
    "LayerTokens": "tokens",
    "Method": "method",
    "PeftFiles": "exchange",
    "PeftPrompt": "exchange",
    "Placement": "tokens",
    "PromptBank": "bank",
    "SiteTokens": "tokens",
    "TrainingStep": "training_step",
    "VirtualTokens": "tokens",
    "blend": "blending",
    "check_init": "initialization",
    "combine": "method",
    "detach": "model",
    "encode": "encoding",
    "export": "saving",
    "flatten_layers": "tokens",
    "fold": "folding",
    "get_method": "method",
    "inspect": "inspection",
    "load": "saving",
    "load_model": "base_models",
    "merge": "saving",
    "most_similar": "comparing",
    "read_config": "saved_config",
    "sampled_ids": "initialization",
    "similarity": "comparing",
    "truncate": "truncation",
    "unflatten_layers": "tokens",
}
"""Public name to the module it is imported from on first use: torch and transformers load slowly."""

_ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type)]

_CHECKS = ["check_choice", "check_not_negative", "check_positive", "check_positive_integer", "check_probability"]
_DEFINED = ["MethodConfig", "Recipe", *_CHECKS]
_OWN = ["hookimpl", "list_methods", "register", "unregister"]

__all__ = sorted([*_LAZY, *_ERRORS, *_DEFINED, *_OWN])


def list_methods() -> list[str]:
    """List the canonical names of all methods, built in and installed; no plugin is imported."""
    from softprompt_zoo.registry import registry

    return list(registry.candidates())


def register(plugin: Any, name: str | None = None) -> Any:
    """Register a method or a wrapper that is not installed as a package, from a notebook say.

    Args:
        plugin: A module, class or object with the hooks and attributes of a plugin.
        name: Canonical name; by default the plugin's `NAME`, or the last part of its `__name__`.

    Returns:
        `plugin`, so that this can be used as a decorator.

    Raises:
        TypeError: If the name is not a string; nothing is registered then, nor below.
        ValueError: If the name has other characters than letters, digits, `_` and `-`.
        PluginError: If the name is taken or the plugin breaks the contract.
    """
    from softprompt_zoo.registry import registry

    return registry.register(plugin, name)


def unregister(name: str) -> None:
    """Take back a `register`; prompts that use the method keep working.

    Args:
        name: The name it was registered under.

    Raises:
        UnknownMethodError: If nothing was registered by hand under that name.
    """
    from softprompt_zoo.registry import registry

    registry.unregister(name)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"softprompt_zoo.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'softprompt_zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
