"""Checks of a plugin's attributes: each returns what is wrong with one, or nothing."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.config.recipe import Recipe

RESERVED_OPTIONS = ("method", "model", "name", "self", "wrappers")
"""Other arguments of the calls that take a method's options: an option of such a name would never reach the config."""


def declared(plugin: Any) -> dict[str, Any]:
    """Return a plugin's attributes by name, with defaults for those it leaves out."""
    return {name: getattr(plugin, name, default) for name, (default, _) in CHECKS.items()}


def problems_of_attributes(plugin: Any) -> Iterator[str]:
    """Yield a line for each attribute that breaks the contract."""
    values = declared(plugin)
    problems = (check(name, values[name]) for name, (_, check) in CHECKS.items())
    yield from (problem for problem in problems if problem is not None)


def _config(_: str, config: Any) -> str | None:
    is_config = isinstance(config, type) and issubclass(config, MethodConfig)
    if not is_config or (inspect.get_annotations(config) and "__dataclass_params__" not in vars(config)):
        return f"its Config is {config!r}; expected a dataclass that extends softprompt_zoo.MethodConfig"
    return _options([field.name for field in dataclasses.fields(config)])


def _options(names: Sequence[str]) -> str | None:
    own = {*dir(MethodConfig)} - {field.name for field in dataclasses.fields(MethodConfig)}
    for name in names:
        if name in RESERVED_OPTIONS:
            reserved = ", ".join(map(repr, RESERVED_OPTIONS))
            return f"its Config has an option {name!r}; {reserved} are arguments of the calls that take options"
        if name in own:
            advice = "use num_tasks for a number of tasks" if name == "tasks" else "rename it"
            return f"its Config has an option {name!r}, which hides MethodConfig.{name}; {advice}"
    return None


def _parameters(_: str, parameters: Any) -> str | None:
    if callable(parameters):
        return None
    return "it has no Parameters; expected a torch.nn.Module that takes (config, backbone)"


def _recipe(_: str, recipe: Any) -> str | None:
    return None if isinstance(recipe, Recipe | None) else f"its RECIPE is {recipe!r}; expected a softprompt_zoo.Recipe"


def _texts(name: str, value: Any) -> str | None:
    is_right = isinstance(value, tuple | list) and all(isinstance(item, str) for item in value)
    return None if is_right else f"its {name} is {value!r}; expected a tuple of strings"


def _kind(name: str, kind: Any) -> str | None:
    return None if isinstance(kind, type | None) else f"its {name} is {kind!r}; expected a class of virtual tokens"


def _examples(name: str, examples: Any) -> str | None:
    is_pair = isinstance(examples, tuple) and len(examples) == 2 and all(isinstance(e, Mapping) for e in examples)
    return None if is_pair or examples is None else f"its {name} are {examples!r}; expected a tuple of two dictionaries"


CHECKS: dict[str, tuple[Any, Callable[[str, Any], str | None]]] = {
    "Config": (None, _config),
    "Parameters": (None, _parameters),
    "RECIPE": (None, _recipe),
    "ALIASES": ((), _texts),
    "PEFT_TYPES": ((), _texts),
    "HOLDS_PLAIN": (None, _kind),
    "EXAMPLE_OPTIONS": (None, _examples),
}
"""Each attribute's default and check."""
