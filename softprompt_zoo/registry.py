"""Looking methods up by name, loading their plugins one by one, and calling their hooks.

A plugin that fails is remembered with its reason and never takes the others down.
"""

import dataclasses
import difflib
import functools
import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pluggy

from softprompt_zoo import discovery, hookspecs
from softprompt_zoo.config import MethodConfig, Recipe
from softprompt_zoo.discovery import Candidate
from softprompt_zoo.errors import PluginError, UnknownMethodError

HOOKS = ("build_virtual_tokens", "inject", "merge")


def normalize(name: str) -> str:
    """Fold a name so that case, `-` and `_` do not matter."""
    return name.lower().replace("-", "").replace("_", "")


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
    """Why it cannot be used, in one line; `None` if nothing is known against it."""


class LoadedMethod:
    """A method whose plugin has been loaded and checked."""

    def __init__(self, candidate: Candidate, plugin: object, callers: dict[str, Callable[..., Any]]) -> None:
        self.name = candidate.name
        self.summary = candidate.summary
        self.aliases = candidate.aliases
        self.distribution = candidate.distribution
        self.version = candidate.version
        self.plugin = plugin
        self._callers = callers

    @property
    def config_class(self) -> type[MethodConfig]:
        """The plugin's `Config`."""
        return self.plugin.Config  # type: ignore[attr-defined,no-any-return]

    @property
    def parameters_class(self) -> Callable[..., Any]:
        """The plugin's `Parameters`."""
        return self.plugin.Parameters  # type: ignore[attr-defined,no-any-return]

    @property
    def recipe(self) -> Recipe | None:
        """The plugin's `RECIPE`, if it has one."""
        return getattr(self.plugin, "RECIPE", None)

    @property
    def peft_types(self) -> tuple[str, ...]:
        """PEFT prompt types whose files the method loads."""
        return tuple(getattr(self.plugin, "PEFT_TYPES", ()))

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call one of the method's hooks, with the wrappers around it.

        Args:
            hook: One of `HOOKS`.
            **arguments: All arguments of the hook's spec.

        Returns:
            What the hook returned.

        Raises:
            PluginError: If it returned nothing.
        """
        result = self._callers[hook](**arguments)
        if result is None:
            raise PluginError(f"{self.describe(hook)} returned nothing; expected a value, see the hook's contract")
        return result

    def describe(self, hook: str) -> str:
        """Name the plugin and hook for a message."""
        return f"method {self.name!r} ({self.distribution} {self.version}), hook {hook!r},"


class Registry:
    """All methods of this process; `registry` below is the one instance that users meet."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._methods: dict[str, LoadedMethod] = {}
        self._failures: dict[str, str] = {}
        self._added: dict[str, Candidate] = {}
        self._plugins: dict[str, object] = {}
        self._wrapper_reports: list[PluginReport] | None = None
        self._callers: dict[tuple[str, str], Callable[..., Any]] = {}

    def candidates(self) -> dict[str, Candidate]:
        """Return the usable names and what offers them, from metadata only; no plugin is imported."""
        return self._resolve()[0]

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
        with self._lock:
            candidates, clashes = self._resolve()
            wanted = normalize(name)
            if wanted in clashes and wanted not in map(normalize, candidates):
                raise PluginError(clashes[wanted])
            by_name = {normalize(other): candidate for candidate in candidates.values() for other in candidate.aliases}
            by_name |= {normalize(candidate.name): candidate for candidate in candidates.values()}
            if wanted not in by_name:
                raise UnknownMethodError(self._unknown(name, candidates))
            return self._load(by_name[wanted])

    def register(self, plugin: object, name: str | None = None) -> object:
        """Register a method or a wrapper that is not installed as a package, from a notebook say.

        Args:
            plugin: A module, class or object with the hooks of `softprompt_zoo.hookspecs`.
            name: Canonical name; by default the plugin's `NAME`, or the last part of its `__name__`.

        Returns:
            `plugin`, so that it can be used as a decorator.

        Raises:
            PluginError: If the name is taken or the plugin breaks the contract; nothing is registered then.
        """
        name = name or getattr(plugin, "NAME", None) or getattr(plugin, "__name__", type(plugin).__name__)
        name = name.rpartition(".")[2]
        summary = (getattr(plugin, "__doc__", None) or "").strip().split("\n")[0]
        aliases = tuple(getattr(plugin, "ALIASES", ()))
        entry = metadata.EntryPoint(name, "registered:by_hand", discovery.GROUP)
        candidate = Candidate(name, entry, "zoo.register", "", aliases, summary)
        with self._lock:
            candidates, _ = self._resolve()
            taken = {normalize(n): c for c in candidates.values() for n in (c.name, *c.aliases)}
            clash = next((n for n in (name, *aliases) if normalize(n) in taken), None)
            if clash is not None:
                other = taken[normalize(clash)]
                raise PluginError(
                    f"the name {clash!r} is taken by method {other.name!r} of {other.origin}; choose another"
                )
            if _is_wrapper(plugin):
                self._register_hooks(f"wrapper:{name}", plugin, candidate)
                self._forget_callers()
                return plugin
            self._activate(candidate, plugin)
            self._added[name] = candidate
        return plugin

    def unregister(self, name: str) -> None:
        """Take back a `register`.

        Args:
            name: The name it was registered under.

        Raises:
            UnknownMethodError: If nothing was registered by hand under that name.
        """
        with self._lock:
            key = name if name in self._added else f"wrapper:{name}"
            if key not in self._plugins:
                raise UnknownMethodError(f"nothing was registered by hand under {name!r}")
            self._manager.unregister(self._plugins.pop(key))
            self._added.pop(name, None)
            self._methods.pop(name, None)
            self._forget_callers()

    def reports(self, load: bool = False) -> list[PluginReport]:
        """Tell what is installed and what is known against it.

        Args:
            load: Also import every plugin and check its hooks.

        Returns:
            A report per plugin, methods first.
        """
        with self._lock:
            if load:
                self._load_wrappers()
            usable, clashes = self._resolve()
            reports = []
            for candidate in [*discovery.find_methods(), *self._added.values()]:
                winner = usable.get(candidate.name)
                is_winner = winner is not None and winner.origin == candidate.origin
                problem = None if is_winner else clashes.get(normalize(candidate.name))
                if load and problem is None:
                    try:
                        self._load(candidate)
                    except PluginError as error:
                        problem = str(error)
                reports.append(PluginReport(candidate.name, "method", candidate.origin, problem))
            known = self._wrapper_reports
            if known is None:
                known = [PluginReport(c.name, "wrapper", c.origin, None) for c in discovery.find_wrappers()]
            return reports + known

    def _resolve(self) -> tuple[dict[str, Candidate], dict[str, str]]:
        """Split what is installed into usable candidates by name, and clashes by normalized name."""
        groups: dict[str, list[Candidate]] = {}
        for candidate in [*discovery.find_methods(), *self._added.values()]:
            groups.setdefault(normalize(candidate.name), []).append(candidate)
        usable: dict[str, Candidate] = {}
        clashes: dict[str, str] = {}
        for key, group in groups.items():
            # The package's own methods come first in their group, and their names cannot be taken over.
            if len(group) == 1 or group[0].distribution == discovery.OWN_DISTRIBUTION:
                usable[group[0].name] = group[0]
            if len(group) > 1:
                origins = " and ".join(candidate.origin for candidate in group)
                clashes[key] = f"two packages offer method {group[0].name!r}: {origins}; uninstall one"
        names = {normalize(name) for name in usable}
        for name, candidate in usable.items():
            free = tuple(alias for alias in candidate.aliases if normalize(alias) not in names)
            names |= {normalize(alias) for alias in free}
            usable[name] = dataclasses.replace(candidate, aliases=free)
        return dict(sorted(usable.items())), clashes

    def _unknown(self, name: str, candidates: dict[str, Candidate]) -> str:
        names = {normalize(n): c.name for c in candidates.values() for n in (*c.aliases, c.name)}
        near = difflib.get_close_matches(normalize(name), names, n=1, cutoff=0.6)
        hint = f"did you mean {names[near[0]]!r}? " if near else ""
        return f"no soft-prompt method {name!r}; {hint}installed: {', '.join(candidates)}"

    def _load(self, candidate: Candidate) -> LoadedMethod:
        if candidate.name in self._methods:
            return self._methods[candidate.name]
        if candidate.name in self._failures:
            raise PluginError(self._failures[candidate.name])
        self._load_wrappers()
        try:
            plugin = candidate.entry_point.load()
        except Exception as error:
            raise self._fail(candidate, f"{type(error).__name__}: {error}") from error
        return self._activate(candidate, plugin)

    def _activate(self, candidate: Candidate, plugin: object) -> LoadedMethod:
        self._register_hooks(candidate.name, plugin, candidate)
        problem = _contract_problem(plugin, self._manager)
        if problem:
            self._manager.unregister(self._plugins.pop(candidate.name))
            raise self._fail(candidate, problem)
        callers = {hook: functools.partial(self._call, candidate.name, hook) for hook in HOOKS}
        self._methods[candidate.name] = LoadedMethod(candidate, plugin, callers)
        self._forget_callers()
        return self._methods[candidate.name]

    def _register_hooks(self, key: str, plugin: object, candidate: Candidate) -> None:
        try:
            self._manager.register(plugin, name=key)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise self._fail(candidate, str(error)) from error
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            self._manager.unregister(name=key)
            raise self._fail(candidate, f"{error}; hooks are {', '.join(HOOKS)}") from error
        self._plugins[key] = plugin

    def _load_wrappers(self) -> None:
        if self._wrapper_reports is not None:
            return
        self._wrapper_reports = []
        for candidate in discovery.find_wrappers():
            problem = None
            try:
                plugin = candidate.entry_point.load()
                if not _is_wrapper(plugin):
                    problem = f"wrapper {candidate.name!r} of {candidate.origin} has a hook that is no wrapper"
                else:
                    self._register_hooks(f"wrapper:{candidate.name}", plugin, candidate)
            except PluginError as error:
                problem = str(error)
            except Exception as error:
                problem = str(self._fail(candidate, f"{type(error).__name__}: {error}"))
            self._failures.pop(candidate.name, None)
            self._wrapper_reports.append(PluginReport(candidate.name, "wrapper", candidate.origin, problem))
        self._forget_callers()

    def _fail(self, candidate: Candidate, reason: str) -> PluginError:
        text = " ".join(reason.split())
        message = f"plugin {candidate.name!r} failed to load from {candidate.origin}: {text}"
        if candidate.distribution != "zoo.register":
            self._failures[candidate.name] = message
        return PluginError(message)

    def _call(self, name: str, hook: str, **arguments: Any) -> Any:
        return self._caller(name, hook)(**arguments)

    def _caller(self, name: str, hook: str) -> Callable[..., Any]:
        key = (name, hook)
        if key not in self._callers:
            others = [plugin for other, plugin in self._plugins.items() if other != name and other in self._methods]
            caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
            self._callers[key] = caller
        return self._callers[key]

    def _forget_callers(self) -> None:
        self._callers.clear()


def _hook_options(plugin: object) -> list[dict[str, Any]]:
    marked = (getattr(getattr(plugin, name, None), f"{hookspecs.PROJECT}_impl", None) for name in dir(plugin))
    return [options for options in marked if isinstance(options, dict)]


def _is_wrapper(plugin: object) -> bool:
    options = _hook_options(plugin)
    return bool(options) and all(option.get("wrapper") or option.get("hookwrapper") for option in options)


def _contract_problem(plugin: object, manager: pluggy.PluginManager) -> str | None:
    """Say in one line what a registered method plugin lacks."""
    if _is_wrapper(plugin):
        return f"it has only wrappers; publish it under the entry-point group {discovery.WRAPPER_GROUP!r}"
    callers = manager.get_hookcallers(plugin) or []
    missing = [hook for hook in HOOKS if hook not in {caller.name for caller in callers}]
    if missing:
        return f"it has no hook {missing[0]!r}; a method has {', '.join(HOOKS)}, each marked softprompt_zoo.hookimpl"
    config = getattr(plugin, "Config", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        return f"its Config is {config!r}; expected a dataclass that extends softprompt_zoo.MethodConfig"
    if not callable(getattr(plugin, "Parameters", None)):
        return "it has no Parameters; expected a torch.nn.Module that takes (config, backbone)"
    return None


registry = Registry()
"""The process's registry."""
