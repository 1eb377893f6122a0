"""Checks of a plugin's hooks and attributes before it is loaded, and the managers that call its hooks."""

import difflib
import inspect
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pluggy

from softprompt_zoo import hookspecs
from softprompt_zoo.config.options import Options
from softprompt_zoo.errors import PluginError
from softprompt_zoo.registry.attribute_check import problems_of_attributes
from softprompt_zoo.registry.discovery import WRAPPER_GROUP, Candidate

HOOKS = ("build_virtual_tokens", "inject", "merge")
"""Hooks that return a value for every prompt; a method need not implement those in `default_hooks`."""
ACTING_HOOKS = ("build_virtual_tokens", "map_text", "attend")
"""Hooks of which a method has at least one: otherwise it would do nothing."""
EXPECTED = {"inject": "a softprompt_zoo.Placement"}
"""Return values of the hooks that return anything but virtual tokens."""
CONFIG_ARGUMENT = "wrapper_config"
"""Additional argument that a wrapper's hook may ask for: the wrapper's `Config`, as the user chose it."""
OPTIONAL_HOOKS = (
    "map_text",
    "attend",
    "training_loss",
    "after_step",
    "parameter_groups",
    "write_peft",
    "read_peft",
    "upgrade",
)


def nearest(wanted: str, choices: Mapping[str, str]) -> str:
    """Suggest what the user may have meant: a sentence, or an empty string."""
    near = difflib.get_close_matches(wanted, choices, n=1)
    return f"did you mean {choices[near[0]]!r}? " if near else ""


def manager(*plugins: object, specs: types.ModuleType | None = hookspecs) -> pluggy.PluginManager:
    """Make a hook manager with these plugins, later ones around earlier ones."""
    made = pluggy.PluginManager(hookspecs.PROJECT)
    if specs:
        made.add_hookspecs(specs)
    for index, plugin in enumerate(plugins):
        made.register(plugin, name=str(index))
    return made


def refusal(hook: str, description: str) -> Callable[[], None]:
    """Make a hook that is reached only if the method's own hook returned nothing."""
    expected = EXPECTED.get(hook, "softprompt_zoo.InputTokens or LayerTokens")

    def refuse() -> None:
        raise PluginError(f"{description} returned nothing; expected {expected}, see the hook's contract")

    return refuse


def add_origin_note(error: BaseException, source: str) -> None:
    """Name the plugin whose code raised an error, in a note that tracebacks show below the error.

    Args:
        error: The error. A note is added to it.
        source: Plugin and hook.
    """
    if source not in str(error):
        error.add_note(f"raised by {source}")


def load_checked(candidate: Candidate) -> object:
    """Import a plugin and check it against the contract; a class whose hooks take `self` becomes an instance."""
    cause = None
    try:
        plugin: Any = candidate.load()
        if isinstance(plugin, type) and _takes_self(plugin):
            plugin = plugin()
        problem = next(problems_of(plugin, candidate.group), "")
        if not problem and (candidate.group == WRAPPER_GROUP or manager(plugin)):
            _warn_of_unmarked(plugin, candidate)
            return plugin
    except (Exception, SystemExit) as error:
        problem, cause = f"{type(error).__name__}: {error}", error
    text = " ".join(f"{candidate.kind} {candidate.name!r} failed to load from {candidate.origin}: {problem}".split())
    raise PluginError(text) from cause


def _warn_of_unmarked(plugin: object, candidate: Candidate) -> None:
    """Warn of functions that look like optional hooks; they may not be meant as hooks, so the plugin still loads."""
    for problem in unmarked(plugin, optional_hooks(candidate.group)):
        warnings.warn(f"{candidate.kind} {candidate.name!r} ({candidate.origin}): {problem}", stacklevel=5)


def _takes_self(plugin: type) -> bool:
    return any("self" in inspect.signature(hook.function).parameters for _, hook in marked(plugin))


def marked(plugin: object) -> list[tuple[str, pluggy.HookImpl]]:
    """Return the functions that a plugin marks as hooks, whether their names are known or not."""
    callers = manager(plugin, specs=None).get_hookcallers(plugin) or ()
    return [(caller.name, hook) for caller in callers for hook in caller.get_hookimpls()]


def is_wrapper(plugin: object) -> bool:
    """Return whether all hooks of a plugin are wrappers."""
    hooks = marked(plugin)
    return bool(hooks) and not own_hooks(plugin)


def own_hooks(plugin: object) -> dict[str, tuple[str, ...]]:
    """Return the names of a plugin's hooks that are not wrappers, and the arguments that each asks for."""
    return {name: hook.argnames for name, hook in marked(plugin) if not (hook.wrapper or hook.hookwrapper)}


def problems_of(plugin: Any, group: str) -> Iterator[str]:
    """Yield a line for each way in which a plugin breaks the contract."""
    further = () if group != WRAPPER_GROUP or config_of(plugin) is None else (CONFIG_ARGUMENT,)
    for name, hook in marked(plugin):
        yield from _problems_of_hook(name, hook, further)
    if group != WRAPPER_GROUP:
        yield from _problems_of_method(plugin)
    elif not is_wrapper(plugin):
        yield "it is not a wrapper; mark all of its hooks hookimpl(wrapper=True)"


def _problems_of_hook(name: str, hook: pluggy.HookImpl, further: tuple[str, ...]) -> Iterator[str]:
    known = (*HOOKS, *OPTIONAL_HOOKS)
    if name not in known:
        hint = nearest(name, {hook: hook for hook in known})
        yield f"there is no hook {name!r}; {hint}hooks are {', '.join(known)}"
    allowed = (*inspect.signature(vars(hookspecs)[name]).parameters, *further)
    if (hook.wrapper or hook.hookwrapper) and not inspect.isgeneratorfunction(hook.function):
        yield f"its hook {name!r} is marked as a wrapper, but is not a generator function: `yield` runs what it wraps"
    unknown = [argument for argument in hook.argnames if argument not in allowed]
    if unknown:
        advice = " (a wrapper with a Config that extends softprompt_zoo.Options)" * (unknown[0] == CONFIG_ARGUMENT)
        yield f"its hook {name!r} asks for {unknown[0]!r}{advice}; it may ask for {', '.join(allowed)}"


def _problems_of_method(plugin: Any) -> Iterator[str]:
    if is_wrapper(plugin):
        yield f"it has only wrappers; publish it under the entry-point group {WRAPPER_GROUP!r}"
    yield from unmarked(plugin, HOOKS)
    if not set(ACTING_HOOKS) & own_hooks(plugin).keys():
        first, *others = ACTING_HOOKS
        lack = "its hook {!r} is marked as a wrapper" if first in dict(marked(plugin)) else "it has no hook {!r}"
        yield (
            f"{lack.format(first)}; a method must implement it, or {' or '.join(others)}, marked "
            "softprompt_zoo.hookimpl"
        )
    yield from problems_of_attributes(plugin)


def optional_hooks(group: str) -> tuple[str, ...]:
    """Return the hooks that a plugin of a group may omit; a wrapper needs none in particular."""
    return (*HOOKS, *OPTIONAL_HOOKS) if group == WRAPPER_GROUP else OPTIONAL_HOOKS


def unmarked(plugin: Any, names: Sequence[str]) -> Iterator[str]:
    """Yield a line for each function that is named like a hook but is not one.

    Args:
        plugin: A method or a wrapper.
        names: The hooks to look for.
    """
    hooks = dict(marked(plugin))
    for name in names:
        if name not in hooks and callable(getattr(plugin, name, None)):
            yield f"its {name!r} is not marked softprompt_zoo.hookimpl, so it is never called; mark it or rename it"


def config_of(plugin: Any) -> type[Options] | None:
    """Return the class of a wrapper's options; `None` if it has none and so acts on every prompt."""
    found = getattr(plugin, "Config", None)
    return found if isinstance(found, type) and issubclass(found, Options) else None
