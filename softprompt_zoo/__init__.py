"""One home for soft-prompt methods on Hugging Face transformers."""

import importlib
from typing import TYPE_CHECKING, Any

from softprompt_zoo import errors
from softprompt_zoo.config import MethodConfig, Recipe, check_choice, check_positive_integer, check_probability
from softprompt_zoo.errors import *  # noqa: F403
from softprompt_zoo.hookspecs import hookimpl

if TYPE_CHECKING:
    from softprompt_zoo.backbone import Backbone
    from softprompt_zoo.encoding import encode
    from softprompt_zoo.exchange import PeftFiles, PeftPrompt
    from softprompt_zoo.initialization import check_init, sampled_ids
    from softprompt_zoo.method import Method, combine, get_method
    from softprompt_zoo.model import detach
    from softprompt_zoo.saving import export, load, merge
    from softprompt_zoo.tokens import (
        InputTokens,
        LayerTokens,
        Placement,
        SiteTokens,
        VirtualTokens,
        flatten_layers,
        unflatten_layers,
    )
    from softprompt_zoo.training_step import TrainingStep

_LAZY = {
    "Backbone": "backbone",
    "InputTokens": "tokens",
    "LayerTokens": "tokens",
    "Method": "method",
    "PeftFiles": "exchange",
    "PeftPrompt": "exchange",
    "Placement": "tokens",
    "SiteTokens": "tokens",
    "TrainingStep": "training_step",
    "VirtualTokens": "tokens",
    "check_init": "initialization",
    "combine": "method",
    "detach": "model",
    "encode": "encoding",
    "export": "saving",
    "flatten_layers": "tokens",
    "get_method": "method",
    "load": "saving",
    "merge": "saving",
    "sampled_ids": "initialization",
    "unflatten_layers": "tokens",
}
"""Public name to the module it is imported from on first use: torch and transformers load slowly."""

_ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type)]

_DEFINED = ["MethodConfig", "Recipe", "check_choice", "check_positive_integer", "check_probability"]
_OWN = ["hookimpl", "list_methods", "register", "unregister"]

__all__ = sorted([*_LAZY, *_ERRORS, *_DEFINED, *_OWN])


def list_methods() -> list[str]:
    """List the canonical names of all methods, built in and installed; no plugin is imported."""
    from softprompt_zoo.registry import registry

    return list(registry.candidates())


def register(plugin: Any, name: str | None = None) -> Any:
    """Register a method or wrapper that is not installed as a package; see `Registry.register`."""
    from softprompt_zoo.registry import registry

    return registry.register(plugin, name)


def unregister(name: str) -> None:
    """Take back a `register`; see `Registry.unregister`."""
    from softprompt_zoo.registry import registry

    registry.unregister(name)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"softprompt_zoo.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'softprompt_zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
