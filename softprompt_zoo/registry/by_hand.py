"""Describing a plugin registered by hand, for instance in a notebook, as if it were installed as a package."""

import inspect
import re

from softprompt_zoo.registry.discovery import GROUP, WRAPPER_GROUP, Candidate
from softprompt_zoo.registry.plugin_check import is_wrapper


def by_hand(plugin: object, name: object) -> Candidate:
    """Describe a plugin; arguments and errors as in `Registry.register`."""
    if name is None:
        name = getattr(plugin, "NAME", getattr(plugin, "__name__", type(plugin).__name__).rpartition(".")[2])
    if not isinstance(name, str):
        raise TypeError(f"plugin name is {name!r} ({type(name).__name__}); expected a string")
    if not re.fullmatch(r"[\w-]*[^\W_][\w-]*", name):
        raise ValueError(f"plugin name is {name!r}; expected letters, digits, '_' and '-'")
    group = WRAPPER_GROUP if is_wrapper(plugin) else GROUP
    summary = (inspect.getdoc(plugin) or "").split("\n")[0]
    return Candidate(name, group, "zoo.register", "", lambda: plugin, summary=summary)
