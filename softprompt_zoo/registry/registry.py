"""Looking methods up by name, loading their plugins one by one, and calling their hooks.

A plugin that fails is remembered with the reason and never affects the others: every method has a separate hook
manager, with its plugin and the wrappers, which is made only once the plugin has been checked.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import warnings
from collections.abc import Iterator

from softprompt_zoo.errors import PluginError, UnknownMethodError, UnsupportedError
from softprompt_zoo.registry import discovery
from softprompt_zoo.registry.attribute_check import declared
from softprompt_zoo.registry.by_hand import by_hand
from softprompt_zoo.registry.discovery import GROUP, WRAPPER_GROUP, Candidate, PluginReport, normalize
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.name_clashes import Names, assign_names
from softprompt_zoo.registry.plugin_check import load_checked, nearest
from softprompt_zoo.registry.wrappers import Wrappers


class Registry:
    """All methods of this process; `registry` below is the instance that users see."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # never held while a plugin is imported: it may look methods up in a thread
        self._seen: tuple[object, ...] | None = None
        self._installed: list[Candidate] = []
        self._by_hand: dict[str, Candidate] = {}
        self._names = Names()
        self._outcomes: dict[Candidate, object] = {}
        self._methods: dict[Candidate, LoadedMethod] = {}
        self.wrappers = Wrappers({})

    def candidates(self) -> dict[str, Candidate]:
        """Return the usable names and the plugins that offer them, from metadata only; no plugin is imported."""
        ordered = sorted(self._resolve().owners.values(), key=lambda candidate: candidate.name)
        return {candidate.name: candidate for candidate in ordered}

    def knows(self, name: str) -> bool:
        """Return whether a name or alias refers to a method, or several."""
        names = self._resolve()
        return normalize(name) in names.owners or normalize(name) in names.clashes

    def lookup(self, name: str) -> LoadedMethod:
        """Find a method by name or alias, loading its plugin on first use.

        Args:
            name: Name or alias; case, `-` and `_` do not matter.

        Returns:
            The loaded method.

        Raises:
            TypeError: If `name` is not a string.
            UnknownMethodError: If nothing offers it; the message names the nearest and the installed ones.
            PluginError: If its plugin fails to load or breaks the contract.
        """
        if not isinstance(name, str):
            raise TypeError(f"method name is {name!r} ({type(name).__name__}); expected a string")
        return self._loaded(self._owner(name))

    def lookup_saved(self, name: str, distribution: str, version: str, where: str) -> LoadedMethod:
        """Find the method of a saved prompt.

        Args:
            name: Canonical name.
            distribution: Package that offered it.
            version: Version of that package; empty if it was registered by hand.
            where: The file or folder that is read, for the message.

        Returns:
            The loaded method.

        Raises:
            UnknownMethodError: If it is not installed; the message says what to install if the file names any.
        """
        try:
            return self.lookup(name)
        except UnknownMethodError as error:
            remedy = discovery.install_advice(distribution, version)
            raise UnknownMethodError(
                f"{where} needs the method {name!r}, which is not installed; {remedy} ({error})"
            ) from error

    def holder_of(self, tokens: object) -> LoadedMethod:
        """Find a method whose prompts can be plain tokens of this kind, built-in ones first.

        Args:
            tokens: The virtual tokens.

        Returns:
            The method.

        Raises:
            UnsupportedError: If no method that loads declares their class.
        """
        for method in self._loadable(self._own_first()):
            if method.plain_kind is not None and isinstance(tokens, method.plain_kind):
                return method
        raise UnsupportedError(
            f"no loaded method holds plain {type(tokens).__name__}; allow the package's own methods to load"
        )

    def _owner(self, name: str) -> Candidate:
        """Return the method that a name or alias refers to."""
        key, names = normalize(name), self._resolve()
        if key in names.clashes:
            raise PluginError(names.clashes[key])
        if key not in names.owners:
            hint = nearest(key, {other: candidate.name for other, candidate in names.owners.items()})
            limit = os.environ.get(discovery.ENVIRONMENT_VARIABLE)
            installed = ", ".join(self.candidates())
            installed += "" if limit is None else f" ({discovery.ENVIRONMENT_VARIABLE} is {limit!r})"
            raise UnknownMethodError(f"no soft-prompt method {name!r}; {hint}installed: {installed}")
        return names.owners[key]

    def reader_of(self, peft_type: str) -> LoadedMethod | None:
        """Find the method that loads a PEFT type, built-in ones first, so that third-party ones cannot take one over.

        Args:
            peft_type: PEFT's name of the type.

        Returns:
            The method; `None` if there is none. Only methods that declare the type are imported; others only if none
            does, since a plugin may compute its `PEFT_TYPES`.
        """
        possible = [one for one in self._own_first() if peft_type in one.peft_types or not one.peft_types]
        declared_first = sorted(possible, key=lambda candidate: not candidate.peft_types)
        return next((m for m in self._loadable(declared_first) if peft_type in m.peft_types), None)

    def peft_types(self) -> list[str]:
        """List the PEFT types that some method loads, sorted by name."""
        return sorted({name for method in self._loadable(self._own_first()) for name in method.peft_types})

    def _own_first(self) -> list[Candidate]:
        return sorted(self.candidates().values(), key=lambda c: c.distribution != discovery.OWN_DISTRIBUTION)

    def _loadable(self, candidates: list[Candidate]) -> Iterator[LoadedMethod]:
        """Yield the methods that load."""
        for candidate in candidates:
            with contextlib.suppress(PluginError):
                yield self._loaded(candidate)

    def register(self, plugin: object, name: str | None = None) -> object:
        """Register a method or a wrapper that is not installed as a package, for instance in a notebook.

        Args:
            plugin: A module, class or object with the hooks of `softprompt_zoo.hookspecs`.
            name: Canonical name; by default the plugin's `NAME`, or the last part of its `__name__`.

        Returns:
            `plugin`, so that it can be used as a decorator.

        Raises:
            TypeError: If the name is not a string. After any of these errors, nothing is registered.
            ValueError: If the name has characters other than letters, digits, `_` and `-`.
            PluginError: If the name is taken or the plugin breaks the contract.
        """
        candidate = by_hand(plugin, name)
        checked = load_checked(candidate)
        values = declared(plugin)
        aliases, peft_types = tuple(values["ALIASES"]), tuple(values["PEFT_TYPES"])
        candidate = dataclasses.replace(candidate, aliases=aliases, peft_types=peft_types)
        with self._lock:
            for wanted in (candidate.name, *aliases):
                self._check_free(wanted)
            self._by_hand[normalize(candidate.name)] = candidate
            self._outcomes[candidate] = checked
            self._seen = None
        self._update_wrappers()
        return plugin

    def _check_free(self, name: str) -> None:
        """Refuse a name or alias that already refers to another plugin, or several."""
        key, names = normalize(name), self._resolve()
        owner = self._by_hand.get(key) or names.owners.get(key)
        if owner is not None:
            again = f", or zoo.unregister({owner.name!r}) first" if owner in self._by_hand.values() else ""
            raise PluginError(f"the name {name!r} is taken by {owner.describe()}; choose another{again}")
        if key in names.clashes:
            raise PluginError(f"the name {name!r} is taken by several plugins; choose another")

    def unregister(self, name: str) -> None:
        """Undo `register`; prompts that use the method keep working.

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
        """Report what is installed, and any problems with it.

        Args:
            load: Also import every plugin and check its hooks.

        Returns:
            A report per plugin, methods first.
        """
        names = self._resolve()
        reports = []
        for candidate in self._offered(GROUP, WRAPPER_GROUP):
            if load and (candidate.group == WRAPPER_GROUP or names.owners.get(normalize(candidate.name)) == candidate):
                with contextlib.suppress(PluginError):
                    self._load(candidate)
            outcome = self._outcomes.get(candidate)
            problem = str(outcome) if isinstance(outcome, PluginError) else names.problems.get(candidate)
            reports.append(PluginReport(candidate.name, candidate.kind, candidate.origin, problem))
        return reports

    def _offered(self, *groups: str) -> list[Candidate]:
        offered = [*self._installed, *self._by_hand.values()]
        return [candidate for group in groups for candidate in offered if candidate.group == group]

    def _resolve(self) -> Names:
        """Resolve the names again if plugins may have been installed, removed, or switched on or off."""
        with self._lock:
            now = fingerprint()
            if self._seen != now:
                if self._seen is not None:  # a plugin's missing dependency may have been installed: try again
                    self._outcomes = {c: o for c, o in self._outcomes.items() if not isinstance(o, PluginError)}
                self._installed = list(dict.fromkeys(discovery.find_plugins()))
                self._names = assign_names(self._offered(GROUP))
                self._seen = now
            return self._names

    def _loaded(self, candidate: Candidate) -> LoadedMethod:
        """Return a method, loading its plugin on first use."""
        plugin = self._load(candidate)
        self._update_wrappers()
        with self._lock:
            if candidate not in self._methods:
                self._methods[candidate] = LoadedMethod(candidate, plugin, self.wrappers)
            return self._methods[candidate]

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
                if is_news:  # wrappers are not looked up by name, so nothing else would report it
                    warnings.warn(str(error), stacklevel=4)
        with self._lock:
            if found != self.wrappers.plugins:
                self.wrappers = Wrappers(found)
                for method in self._methods.values():
                    method.wrappers = self.wrappers


def fingerprint() -> tuple[object, ...]:
    """Return a value that changes when a plugin may have been installed, removed or switched on or off."""
    times = (os.path.getmtime(path) for path in sys.path if os.path.exists(path))
    return (os.environ.get(discovery.ENVIRONMENT_VARIABLE), *sys.path, *times)


registry = Registry()
"""The registry of this process."""
