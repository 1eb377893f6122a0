"""The wrappers of this process: which hooks they run around, which have options, and which a prompt chose."""

from collections.abc import Mapping
from typing import Any

import pluggy

from softprompt_zoo.config.options import Options
from softprompt_zoo.errors import UnknownMethodError
from softprompt_zoo.registry.discovery import Candidate, normalize
from softprompt_zoo.registry.plugin_check import HOOKS, OPTIONAL_HOOKS, config_of, manager, nearest
from softprompt_zoo.registry.wrapped_hook import WrappingHook, in_new_style


class Wrappers:
    """All wrappers that loaded; those with options run around the hooks of prompts that chose them."""

    def __init__(self, plugins: Mapping[Candidate, object]) -> None:
        self.plugins = plugins
        self._configs = {candidate.name: config_of(plugin) for candidate, plugin in plugins.items()}
        calls = manager(*plugins.values(), specs=None).hook
        candidates = list(plugins)
        self._hooks: dict[str, tuple[WrappingHook, ...]] = {}
        for hook in (*HOOKS, *OPTIONAL_HOOKS):
            found = getattr(calls, hook).get_hookimpls() if hasattr(calls, hook) else ()
            self._hooks[hook] = tuple(self._wrapping(candidates[int(one.plugin_name)], hook, one) for one in found)

    def _wrapping(self, candidate: Candidate, hook: str, found: pluggy.HookImpl) -> WrappingHook:
        return WrappingHook(
            wrapper=candidate.name,
            source=f"wrapper {candidate.name!r} ({candidate.origin}), hook {hook!r},",
            function=found.function if found.wrapper else in_new_style(found.function),
            asks_for=tuple(found.argnames),
            is_chosen=self._configs[candidate.name] is not None,
            returns_a_value=hook in HOOKS,
        )

    def around(self, hook: str, chosen: Mapping[str, Options]) -> tuple[WrappingHook, ...]:
        """Return the wrappers that run around a prompt's hook, outermost last.

        Args:
            hook: The hook's name.
            chosen: The wrappers that the user chose for the prompt, by name, with their options.
        """
        every = self._hooks[hook]
        return every and tuple([one for one in every if one.acts(chosen)])

    def choose(self, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Options]:
        """Read the options of wrappers.

        Args:
            wanted: The options that the user gave each wrapper, by the wrapper's name or alias.

        Returns:
            The parsed options, by canonical name.

        Raises:
            TypeError: If an option is unknown or of a wrong type, or the wrapper has no options.
            ValueError: If an option has a value that is not allowed.
            UnknownMethodError: If there is no such wrapper.
        """
        if not isinstance(wanted, Mapping):
            raise TypeError(f"wrappers is {wanted!r} ({type(wanted).__name__}); expected wrapper names with options")
        return dict(self._chosen(name, options) for name, options in wanted.items())

    def _chosen(self, wanted: str, options: Mapping[str, Any]) -> tuple[str, Options]:
        by_key = {normalize(name): name for name in self._configs}
        key = normalize(str(wanted))
        if key not in by_key:
            installed = ", ".join(self._configs) or "none"
            raise UnknownMethodError(f"no wrapper {wanted!r}; {nearest(key, by_key)}installed: {installed}")
        name = by_key[key]
        if not isinstance(options, Mapping):
            raise TypeError(f"the options of wrapper {name!r} are {options!r}; expected a dictionary")
        kind = self._configs[name] or Options
        return name, kind.from_options(dict(options), f"wrapper {name!r}")

    def acting(self, chosen: Mapping[str, Options]) -> dict[str, Candidate]:
        """Return the wrappers that run around any hook of a prompt, by name; `chosen` as in `around`."""
        names = {one.wrapper for hook in self._hooks.values() for one in hook if one.acts(chosen)}
        return {candidate.name: candidate for candidate in self.plugins if candidate.name in names}
