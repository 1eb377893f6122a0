"""Looking methods up by name, loading their plugins one by one, and calling their hooks.

A plugin that fails is remembered with its reason and never takes the others down: every method has a hook
manager of its own, with its plugin and the wrappers in it, that is only made once the plugin has been checked.
"""

import contextlib
import dataclasses
import inspect
import os
import re
import threading
import types
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from softprompt_zoo import discovery, hookspecs
from softprompt_zoo.config import MethodConfig, Recipe
from softprompt_zoo.contract import (
    HOOKS,
    OPTIONAL_HOOKS,
    is_wrapper,
    load_checked,
    manager,
    nearest,
    note_origin,
    refusal,
)
from softprompt_zoo.discovery import GROUP, WRAPPER_GROUP, Candidate, normalize
from softprompt_zoo.errors import PluginError, UnknownMethodError

if TYPE_CHECKING:
    from torch import nn

    from softprompt_zoo.backbone import Backbone

_Names = tuple[dict[str, Candidate], dict[str, str], dict[Candidate, str]]
"""By normalized name or alias what it finds, and why it finds nothing; by candidate which name it cannot have."""


@dataclasses.dataclass(frozen=True)
class PluginReport:
    """One line of `softprompt-zoo plugins`."""

    name: str
    """Canonical name, as published."""
    kind: str
    """`"method"` or `"wrapper"`."""
    origin: str
    """Distribution and version."""
    problem: str | None
    """What is wrong with it, in one line; `None` if nothing is known against it."""


class LoadedMethod:
    """A method whose plugin has been loaded and checked; its attributes are what the plugin declares."""

    def __init__(self, candidate: Candidate, plugin: Any, wrappers: dict[Candidate, object]) -> None:
        self.name = candidate.name
        self.summary = candidate.summary
        self.aliases = candidate.aliases
        self.distribution = candidate.distribution
        self.version = candidate.version
        self.plugin = plugin
        self.config_class: type[MethodConfig] = plugin.Config
        self.parameters_class: Callable[..., Any] = plugin.Parameters
        self.recipe: Recipe | None = getattr(plugin, "RECIPE", None)
        five_and_seven = {"num_virtual_tokens": 5}, {"num_virtual_tokens": 7}
        self.example_options: tuple[Mapping[str, Any], ...] = getattr(plugin, "EXAMPLE_OPTIONS", five_and_seven)
        self.peft_types = tuple(getattr(plugin, "PEFT_TYPES", ()))
        self.origin = candidate.origin
        self._wrap(wrappers)

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call one of the method's hooks, with the wrappers around it.

        Args:
            hook: One of `HOOKS` or `OPTIONAL_HOOKS`.
            **arguments: All arguments of the hook's spec.

        Returns:
            What the hook returned; `None` where the method lacks an optional one.

        Raises:
            PluginError: If it returned nothing and is not optional.
            Exception: What the hook itself raises, with a note that names plugin and hook.
        """
        try:
            result = self._callers[hook](**arguments)
        except Exception as error:
            note_origin(error, self.describe(hook).rstrip(","), self._wrapped_by)
            raise
        if result is None and hook in HOOKS:
            raise PluginError(f"{self._wrapped_by}, around {self.describe(hook)} returned nothing; expected a value")
        return result

    def make_parameters(self, config: MethodConfig, backbone: "Backbone") -> "nn.Module":
        """Make what the method trains; it has no start values yet.

        Args:
            config: What the user chose.
            backbone: Sizes of the model.

        Returns:
            The method's `Parameters`.

        Raises:
            PluginError: If they are no module, or have no `initialize`.
        """
        from torch import nn  # slow to load, and listing methods does without

        source = self.describe_parameters()
        try:
            made = self.parameters_class(config, backbone)
        except Exception as error:
            note_origin(error, f"{source} called with (config, backbone)")
            raise
        if not isinstance(made, nn.Module):
            raise PluginError(f"{source} returned {type(made).__name__}; expected a torch.nn.Module")
        if not callable(getattr(made, "initialize", None)):
            raise PluginError(f"{source} has no initialize(config, backbone); it is what gives the start values")
        return made

    def initialize(self, parameters: Any, config: MethodConfig, backbone: "Backbone") -> None:
        """Give the method's `Parameters` its own start values.

        Args:
            parameters: From `make_parameters`. Changed in place.
            config: What the user chose.
            backbone: Sizes of the model.
        """
        try:
            parameters.initialize(config, backbone)
        except Exception as error:
            note_origin(error, f"method {self.name!r} ({self.origin}), Parameters.initialize(config, backbone)")
            raise

    def has(self, hook: str) -> bool:
        """Say whether the method, or a wrapper around it, has an optional hook."""
        return bool(self._callers[hook].get_hookimpls())

    def describe_parameters(self) -> str:
        """Name the plugin and its parameters for a message."""
        return f"method {self.name!r} ({self.origin}), Parameters,"

    def describe(self, hook: str) -> str:
        """Name the plugin and hook for a message."""
        return f"method {self.name!r} ({self.origin}), hook {hook!r},"

    def _wrap(self, wrappers: dict[Candidate, object]) -> None:
        # Called after the method's own hook, thus only if that returned nothing: the wrappers see no `None`.
        refusals = {hook: hookspecs.hookimpl(refusal(self.describe(hook)), trylast=True) for hook in HOOKS}
        hooks = manager(self.plugin, types.SimpleNamespace(**refusals), *wrappers.values())
        self._callers = {hook: getattr(hooks.hook, hook) for hook in (*HOOKS, *OPTIONAL_HOOKS)}
        self._wrapped_by = " or ".join(wrapper.describe() for wrapper in wrappers)


class Registry:
    """All methods of this process; `registry` below is the one instance that users meet."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # never held while a plugin is imported: that may look methods up in a thread
        self._seen: tuple[object, ...] | None = None
        self._installed: list[Candidate] = []
        self._by_hand: dict[str, Candidate] = {}
        self._names: _Names = ({}, {}, {})
        self._outcomes: dict[Candidate, object] = {}
        self._methods: dict[Candidate, LoadedMethod] = {}
        self._wrappers: dict[Candidate, object] = {}

    def candidates(self) -> dict[str, Candidate]:
        """Return the usable names and what offers them, from metadata only; no plugin is imported."""
        return {candidate.name: candidate for candidate in sorted(self._resolve()[0].values(), key=lambda c: c.name)}

    def lookup(self, name: str) -> LoadedMethod:
        """Find a method by name or alias, loading its plugin on first use.

        Args:
            name: Name or alias; case, `-` and `_` do not matter.

        Returns:
            The loaded method.

        Raises:
            TypeError: If `name` is not a string.
            UnknownMethodError: If nothing offers it; names the nearest and the installed ones.
            PluginError: If its plugin fails to load or to keep the contract.
        """
        if not isinstance(name, str):
            raise TypeError(f"method name is {name!r} ({type(name).__name__}); expected a string")
        key = normalize(name)
        owners, clashes, _ = self._resolve()
        if key in clashes:
            raise PluginError(clashes[key])
        if key not in owners:
            hint = nearest(key, {other: candidate.name for other, candidate in owners.items()})
            limit = os.environ.get(discovery.ENVIRONMENT_VARIABLE)
            installed = ", ".join(self.candidates())
            installed += "" if limit is None else f" ({discovery.ENVIRONMENT_VARIABLE} is {limit!r})"
            raise UnknownMethodError(f"no soft-prompt method {name!r}; {hint}installed: {installed}")
        candidate = owners[key]
        plugin = self._load(candidate)
        self._update_wrappers()
        with self._lock:
            if candidate not in self._methods:
                self._methods[candidate] = LoadedMethod(candidate, plugin, self._wrappers)
            return self._methods[candidate]

    def lookup_saved(self, name: str, distribution: str, version: str, where: str) -> LoadedMethod:
        """Find the method of a saved prompt.

        Args:
            name: Canonical name.
            distribution: Package that offered it.
            version: Version of that package; empty if it was registered by hand.
            where: What is read, for the message.

        Returns:
            The loaded method.

        Raises:
            UnknownMethodError: If it is not installed; says what to install, if the file names a package at all.
        """
        try:
            return self.lookup(name)
        except UnknownMethodError as error:
            remedy = discovery.install_advice(distribution, version)
            raise UnknownMethodError(
                f"{where} needs the method {name!r}, which is not installed; {remedy} ({error})"
            ) from error

    def register(self, plugin: object, name: str | None = None) -> object:
        """Register a method or a wrapper that is not installed as a package, from a notebook say.

        Args:
            plugin: A module, class or object with the hooks of `softprompt_zoo.hookspecs`.
            name: Canonical name; by default the plugin's `NAME`, or the last part of its `__name__`.

        Returns:
            `plugin`, so that it can be used as a decorator.

        Raises:
            TypeError: If the name is not a string; nothing is registered then, nor below.
            ValueError: If the name has other characters than letters, digits, `_` and `-`.
            PluginError: If the name is taken or the plugin breaks the contract.
        """
        if name is None:
            name = getattr(plugin, "NAME", getattr(plugin, "__name__", type(plugin).__name__).rpartition(".")[2])
        if not isinstance(name, str):
            raise TypeError(f"plugin name is {name!r} ({type(name).__name__}); expected a string")
        if not re.fullmatch(r"[\w-]*[^\W_][\w-]*", name):
            raise ValueError(f"plugin name is {name!r}; expected letters, digits, '_' and '-'")
        group = WRAPPER_GROUP if is_wrapper(plugin) else GROUP
        summary = (inspect.getdoc(plugin) or "").split("\n")[0]
        candidate = Candidate(name, group, "zoo.register", "", lambda: plugin, summary=summary)
        checked = load_checked(candidate)
        candidate = dataclasses.replace(candidate, aliases=tuple(getattr(plugin, "ALIASES", ())))
        with self._lock:
            owners, clashes, _ = self._resolve()
            for wanted in (name, *candidate.aliases):
                owner = self._by_hand.get(normalize(wanted)) or owners.get(normalize(wanted))
                if owner or normalize(wanted) in clashes:
                    by = owner.describe() if owner else "several plugins"
                    is_by_hand = owner in self._by_hand.values()
                    again = f", or zoo.unregister({owner.name!r}) first" if owner and is_by_hand else ""
                    raise PluginError(f"the name {wanted!r} is taken by {by}; choose another{again}")
            self._by_hand[normalize(name)] = candidate
            self._outcomes[candidate] = checked
            self._seen = None
        self._update_wrappers()
        return plugin

    def unregister(self, name: str) -> None:
        """Take back a `register`; prompts that use the method keep working.

        Args:
            name: The name it was registered under.

        Raises:
            UnknownMethodError: If nothing was registered by hand under that name.
        """
        with self._lock:
            candidate = self._by_hand.pop(normalize(str(name)), None)
            if candidate is None:
                known = ", ".join(repr(other.name) for other in self._by_hand.values()) or "nothing"
                raise UnknownMethodError(f"nothing was registered by hand under {name!r}; registered: {known}")
            self._outcomes.pop(candidate, None)
            self._methods.pop(candidate, None)
            self._seen = None
        self._update_wrappers()

    def reports(self, load: bool = False) -> list[PluginReport]:
        """Tell what is installed and what is known against it.

        Args:
            load: Also import every plugin and check its hooks.

        Returns:
            A report per plugin, methods first.
        """
        owners, _, problems = self._resolve()
        reports = []
        for candidate in self._offered(GROUP, WRAPPER_GROUP):
            if load and (candidate.group == WRAPPER_GROUP or owners.get(normalize(candidate.name)) == candidate):
                with contextlib.suppress(PluginError):
                    self._load(candidate)
            outcome = self._outcomes.get(candidate)
            problem = str(outcome) if isinstance(outcome, PluginError) else problems.get(candidate)
            reports.append(PluginReport(candidate.name, candidate.kind, candidate.origin, problem))
        return reports

    def _offered(self, *groups: str) -> list[Candidate]:
        offered = [*self._installed, *self._by_hand.values()]
        return [candidate for group in groups for candidate in offered if candidate.group == group]

    def _resolve(self) -> _Names:
        """Work out the names anew if plugins may have come, gone or been switched on or off."""
        with self._lock:
            now = discovery.fingerprint()
            if self._seen != now:
                if self._seen is not None:  # what a plugin lacked may have been installed: try it again
                    self._outcomes = {c: o for c, o in self._outcomes.items() if not isinstance(o, PluginError)}
                self._installed = list(dict.fromkeys(discovery.find_methods() + discovery.find_wrappers()))
                self._names = _assign_names(self._offered(GROUP))
                self._seen = now
            return self._names

    def _load(self, candidate: Candidate) -> object:
        outcome = self._outcomes.get(candidate)
        if outcome is None:
            try:
                outcome = load_checked(candidate)
            except PluginError as error:
                outcome = error
            self._outcomes[candidate] = outcome
        if isinstance(outcome, PluginError):
            raise PluginError(str(outcome)) from outcome.__cause__
        return outcome

    def _update_wrappers(self) -> None:
        found = {}
        for candidate in self._offered(WRAPPER_GROUP):
            is_news = candidate not in self._outcomes
            try:
                found[candidate] = self._load(candidate)
            except PluginError as error:
                if is_news:  # nobody looks a wrapper up by name
                    warnings.warn(str(error), stacklevel=4)
        with self._lock:
            if found != self._wrappers:
                self._wrappers = found
                for method in self._methods.values():
                    method._wrap(found)


def _assign_names(methods: list[Candidate]) -> _Names:
    """Give each name to one method: built-in names and aliases first, then strangers' names, then their aliases."""
    claims: dict[str, dict[Candidate, tuple[int, str]]] = {}
    for candidate in methods:
        for rank, name in enumerate((candidate.name, *candidate.aliases)):
            claim = (0 if candidate.distribution == discovery.OWN_DISTRIBUTION else min(rank, 1) + 1, name)
            claims.setdefault(normalize(name), {}).setdefault(candidate, claim)
    owners: dict[str, Candidate] = {}
    clashes: dict[str, str] = {}
    problems: dict[Candidate, str] = {}
    for key, group in claims.items():
        best, name = min(group.values())
        ordered = sorted(group, key=lambda candidate: group[candidate][0])
        is_clash = [rank for rank, _ in group.values()].count(best) > 1
        offers = " and ".join(candidate.describe() for candidate in ordered)
        advice = "uninstall one, or use other names of theirs" if is_clash else "the first keeps it; rename the other"
        text = f"{len(group)} plugins offer the name {name!r}: {offers}; {advice}"
        if is_clash:
            clashes[key] = text
        else:
            owners[key] = ordered.pop(0)
        problems = dict.fromkeys(ordered, text) | problems
    usable = {key: c for key, c in owners.items() if owners.get(normalize(c.name)) == c}
    own = {c: tuple(alias for alias in c.aliases if usable.get(normalize(alias)) == c) for c in usable.values()}
    return {key: dataclasses.replace(c, aliases=own[c]) for key, c in usable.items()}, clashes, problems


registry = Registry()
"""The process's registry."""
