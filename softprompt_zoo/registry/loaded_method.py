"""A method whose plugin has been loaded and checked, and calling its hooks."""

import copy
import functools
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from softprompt_zoo import hookspecs
from softprompt_zoo.config.options import MethodConfig, Options
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import PluginError
from softprompt_zoo.registry.attribute_check import declared
from softprompt_zoo.registry.beyond_tokens import BeyondTokens
from softprompt_zoo.registry.default_hooks import default_hooks
from softprompt_zoo.registry.discovery import Candidate
from softprompt_zoo.registry.plugin_check import HOOKS, OPTIONAL_HOOKS, add_origin_note, manager, own_hooks, refusal
from softprompt_zoo.registry.wrapped_hook import call as call_within
from softprompt_zoo.registry.wrappers import Wrappers

if TYPE_CHECKING:
    from torch import nn

    from softprompt_zoo.backbone.backbone import Backbone


NONE_CHOSEN: Mapping[str, Options] = {}
FIVE_AND_SEVEN = {"num_virtual_tokens": 5}, {"num_virtual_tokens": 7}
"""Default `EXAMPLE_OPTIONS` of a method with virtual tokens."""


class LoadedMethod:
    """A method whose plugin has been loaded and checked, with the attributes that the plugin declares."""

    def __init__(self, candidate: Candidate, plugin: Any, wrappers: Wrappers, absent: Any = None) -> None:
        self.name = candidate.name
        self.summary = candidate.summary
        self.aliases = candidate.aliases
        self.distribution = candidate.distribution
        self.version = candidate.version
        self.plugin = plugin
        values = declared(plugin)
        self.config_class: type[MethodConfig] = values["Config"]
        self.parameters_class: Callable[..., Any] = values["Parameters"]
        self.recipe: Recipe | None = values["RECIPE"]
        usual = FIVE_AND_SEVEN if self.config_class.num_virtual_tokens else ({}, {})
        self.example_options: tuple[Mapping[str, Any], ...] = values["EXAMPLE_OPTIONS"] or usual
        self.peft_types: tuple[str, ...] = tuple(values["PEFT_TYPES"])
        self.plain_kind: type | None = values["HOLDS_PLAIN"]
        self.origin = candidate.origin
        self.wrappers = wrappers
        self.absent = absent
        """Its picklable description, if it is a stand-in for a method that is not installed."""
        own = own_hooks(plugin)
        self.beyond_tokens = BeyondTokens.of(own)
        defaults = default_hooks(manager(plugin).hook.build_virtual_tokens, self._why_not_merged())
        # Called after the method's own hook, so only if that returned nothing: wrappers never see `None`.
        last = {hook: hookspecs.hookimpl(refusal(hook, self.describe(hook)), trylast=True) for hook in HOOKS}
        last |= {hook: default for hook, default in defaults.items() if hook not in own}
        hooks = manager(plugin, types.SimpleNamespace(**last))
        self._callers = {hook: getattr(hooks.hook, hook) for hook in (*HOOKS, *OPTIONAL_HOOKS)}

    def call(self, hook: str, chosen: Mapping[str, Options] = NONE_CHOSEN, /, **arguments: Any) -> Any:
        """Call one of the method's hooks, with the wrappers around it.

        Args:
            hook: One of `HOOKS` or `OPTIONAL_HOOKS`.
            chosen: The wrappers that the user chose, by name, with their options; others that have options do not run.
            **arguments: All arguments of the hook's spec.

        Returns:
            The hook's result; `None` if the method lacks an optional hook.

        Raises:
            PluginError: If a hook that is not optional, or a wrapper around it, returned nothing.
            Exception: Whatever the hook itself raises, with a note that names plugin and hook.
        """
        if not self.wrappers.plugins:
            return self.call_own(hook, arguments)
        around = self.wrappers.around(hook, chosen)
        return call_within(around, functools.partial(self.call_own, hook, arguments), arguments, chosen)

    def call_own(self, hook: str, arguments: Mapping[str, Any]) -> Any:
        """Call one of the method's hooks without the wrappers around it; otherwise as `call`."""
        try:
            return self._callers[hook](**arguments)
        except Exception as error:
            add_origin_note(error, self.describe(hook).rstrip(","))
            raise

    def read_options(self, options: Mapping[str, Any]) -> MethodConfig:
        """Make the method's config from options; arguments and errors as in `MethodConfig.from_options`."""
        return self.config_class.from_options(dict(options), f"method {self.name!r}")

    def make_parameters(self, config: MethodConfig, backbone: "Backbone") -> "nn.Module":
        """Make the method's parameters, without start values.

        Args:
            config: What the user chose.
            backbone: Sizes of the model.

        Returns:
            The method's `Parameters`.

        Raises:
            PluginError: If they are not a module, or have no `initialize`.
        """
        from torch import nn  # loads slowly; listing methods does not need it

        source = self.describe_parameters()
        try:
            made = self.parameters_class(config, backbone)
        except Exception as error:
            add_origin_note(error, f"{source} called with (config, backbone)")
            raise
        if not isinstance(made, nn.Module):
            raise PluginError(f"{source} returned {type(made).__name__}; expected a torch.nn.Module")
        if not callable(getattr(made, "initialize", None)):
            raise PluginError(f"{source} has no initialize(config, backbone), which gives the start values")
        return made

    def initialize(self, parameters: Any, config: MethodConfig, backbone: "Backbone") -> None:
        """Set the method's own start values in its `Parameters`.

        Args:
            parameters: From `make_parameters`. Changed in place.
            config: What the user chose.
            backbone: Sizes of the model.
        """
        try:
            parameters.initialize(config, backbone)
        except Exception as error:
            add_origin_note(error, f"method {self.name!r} ({self.origin}), Parameters.initialize(config, backbone)")
            raise

    def has(self, hook: str, chosen: Mapping[str, Options] = NONE_CHOSEN) -> bool:
        """Return whether the method, or a wrapper around it, has an optional hook; arguments as in `call`."""
        return bool(self._callers[hook].get_hookimpls() or self.wrappers.around(hook, chosen))

    def within(self, wrappers: Wrappers) -> "LoadedMethod":
        """Return the same method with other wrappers around its hooks."""
        other = copy.copy(self)
        other.wrappers = wrappers
        return other

    def describe_parameters(self) -> str:
        """Name the plugin and its parameters for a message."""
        return f"method {self.name!r} ({self.origin}), Parameters,"

    def describe(self, hook: str) -> str:
        """Name the plugin and hook for a message."""
        return f"method {self.name!r} ({self.origin}), hook {hook!r},"

    def _why_not_merged(self) -> str | None:
        if self.beyond_tokens is None:
            return None
        return (
            f"method {self.name!r} {self.beyond_tokens.description}, so its prompts have no merged form: they are not "
            "constant tokens. Save them in our format, which holds them whole"
        )
