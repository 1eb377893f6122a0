"""One home for soft-prompt methods on Hugging Face transformers."""

import importlib
from typing import TYPE_CHECKING, Any

from softprompt_zoo import errors
from softprompt_zoo.config.checks import check_choice as check_choice
from softprompt_zoo.config.checks import check_not_negative as check_not_negative
from softprompt_zoo.config.checks import check_positive as check_positive
from softprompt_zoo.config.checks import check_positive_integer as check_positive_integer
from softprompt_zoo.config.checks import check_probability as check_probability
from softprompt_zoo.config.options import MethodConfig as MethodConfig
from softprompt_zoo.config.options import Options as Options
from softprompt_zoo.config.recipe import Recipe as Recipe
from softprompt_zoo.errors import *  # noqa: F403
from softprompt_zoo.hookspecs import hookimpl as hookimpl

if TYPE_CHECKING:  # "as" exports a name to the type checkers of plugins
    from softprompt_zoo.backbone.backbone import Backbone as Backbone
    from softprompt_zoo.bank.bank import PromptBank as PromptBank
    from softprompt_zoo.bank.prefix_reader import Prefix as Prefix
    from softprompt_zoo.bank.prefix_reader import PrefixEntry as PrefixEntry
    from softprompt_zoo.bank.prefix_reader import PrefixReader as PrefixReader
    from softprompt_zoo.exchange import PeftFiles as PeftFiles
    from softprompt_zoo.exchange import PeftPrompt as PeftPrompt
    from softprompt_zoo.exchange import TrainingStep as TrainingStep
    from softprompt_zoo.method import Method as Method
    from softprompt_zoo.method import combine as combine
    from softprompt_zoo.method import get_method as get_method
    from softprompt_zoo.methods.parts.initialization import sampled_ids as sampled_ids
    from softprompt_zoo.methods.parts.start_options import check_init as check_init
    from softprompt_zoo.model.attachment import detach as detach
    from softprompt_zoo.operations.base_models import load_model as load_model
    from softprompt_zoo.operations.base_models import read_config as read_config
    from softprompt_zoo.operations.blend import blend as blend
    from softprompt_zoo.operations.fold import fold as fold
    from softprompt_zoo.operations.inspect import inspect as inspect
    from softprompt_zoo.operations.load_and_export import export as export
    from softprompt_zoo.operations.load_and_export import load as load
    from softprompt_zoo.operations.load_and_export import merge as merge
    from softprompt_zoo.operations.similarity import most_similar as most_similar
    from softprompt_zoo.operations.similarity import similarity as similarity
    from softprompt_zoo.operations.truncate import truncate as truncate
    from softprompt_zoo.text.encode import encode as encode
    from softprompt_zoo.tokens.gated_tokens import GatedTokens as GatedTokens
    from softprompt_zoo.tokens.input_tokens import InputTokens as InputTokens
    from softprompt_zoo.tokens.layer_tokens import LayerTokens as LayerTokens
    from softprompt_zoo.tokens.layer_tokens import flatten_layers as flatten_layers
    from softprompt_zoo.tokens.layer_tokens import unflatten_layers as unflatten_layers
    from softprompt_zoo.tokens.placement import Placement as Placement
    from softprompt_zoo.tokens.scored_tokens import ScoredTokens as ScoredTokens
    from softprompt_zoo.tokens.site_tokens import SiteTokens as SiteTokens
    from softprompt_zoo.tokens.task_tokens import TaskTokens as TaskTokens
    from softprompt_zoo.tokens.text import Text as Text
    from softprompt_zoo.tokens.virtual_tokens import VirtualTokens as VirtualTokens

_LAZY = {
    "Backbone": "backbone.backbone",
    "GatedTokens": "tokens.gated_tokens",
    "InputTokens": "tokens.input_tokens",
    "LayerTokens": "tokens.layer_tokens",
    "Method": "method",
    "PeftFiles": "exchange",
    "PeftPrompt": "exchange",
    "Placement": "tokens.placement",
    "Prefix": "bank.prefix_reader",
    "PrefixEntry": "bank.prefix_reader",
    "PrefixReader": "bank.prefix_reader",
    "PromptBank": "bank.bank",
    "ScoredTokens": "tokens.scored_tokens",
    "SiteTokens": "tokens.site_tokens",
    "TaskTokens": "tokens.task_tokens",
    "Text": "tokens.text",
    "TrainingStep": "exchange",
    "VirtualTokens": "tokens.virtual_tokens",
    "blend": "operations.blend",
    "check_init": "methods.parts.start_options",
    "combine": "method",
    "detach": "model.attachment",
    "encode": "text.encode",
    "export": "operations.load_and_export",
    "flatten_layers": "tokens.layer_tokens",
    "fold": "operations.fold",
    "get_method": "method",
    "inspect": "operations.inspect",
    "load": "operations.load_and_export",
    "load_model": "operations.base_models",
    "merge": "operations.load_and_export",
    "most_similar": "operations.similarity",
    "read_config": "operations.base_models",
    "sampled_ids": "methods.parts.initialization",
    "similarity": "operations.similarity",
    "truncate": "operations.truncate",
    "unflatten_layers": "tokens.layer_tokens",
}
"""Maps public names to the modules they are imported from on first use: torch and transformers load slowly."""

_ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type)]

_CHECKS = ["check_choice", "check_not_negative", "check_positive", "check_positive_integer", "check_probability"]
_DEFINED = ["MethodConfig", "Options", "Recipe", *_CHECKS]
_OWN = ["hookimpl", "list_methods", "register", "unregister"]

__all__ = sorted([*_LAZY, *_ERRORS, *_DEFINED, *_OWN])


def list_methods() -> list[str]:
    """List the canonical names of all methods, built in and installed; no plugin is imported."""
    from softprompt_zoo.registry.registry import registry

    return list(registry.candidates())


def register(plugin: Any, name: str | None = None) -> Any:
    """Register a method or a wrapper that is not installed as a package, for instance in a notebook.

    Args:
        plugin: A module, class or object with the hooks and attributes of a plugin.
        name: Canonical name; by default the plugin's `NAME`, or the last part of its `__name__`.

    Returns:
        `plugin`, so that this can be used as a decorator.

    Raises:
        TypeError: If the name is not a string. After any of these errors, nothing is registered.
        ValueError: If the name has characters other than letters, digits, `_` and `-`.
        PluginError: If the name is taken or the plugin breaks the contract.
    """
    from softprompt_zoo.registry.registry import registry

    return registry.register(plugin, name)


def unregister(name: str) -> None:
    """Undo `register`; prompts that use the method keep working.

    Args:
        name: The name it was registered under.

    Raises:
        UnknownMethodError: If nothing was registered by hand under that name.
    """
    from softprompt_zoo.registry.registry import registry

    registry.unregister(name)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        found = getattr(importlib.import_module(f"softprompt_zoo.{_LAZY[name]}"), name)
        globals()[name] = found  # asked for once
        return found
    raise AttributeError(f"module 'softprompt_zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
