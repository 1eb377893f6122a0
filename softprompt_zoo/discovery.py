"""Which plugins are installed, from metadata and source text alone: no plugin code runs here."""

import ast
import dataclasses
import functools
import importlib.machinery
import importlib.util
import os
from importlib import metadata
from pathlib import Path

from softprompt_zoo.methods import BUILTINS

GROUP = "softprompt_zoo"
"""Entry-point group of methods; the entry's name is the method's canonical name."""

WRAPPER_GROUP = "softprompt_zoo.wrappers"
"""Entry-point group of plugins that wrap every method's hooks."""

ENVIRONMENT_VARIABLE = "SOFTPROMPT_ZOO_PLUGINS"
"""Comma-separated names of the entry points or distributions that may load; empty for built-ins only."""

OWN_DISTRIBUTION = "softprompt-zoo"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A plugin that is installed, loaded or not."""

    name: str
    """Canonical name, as published."""
    entry_point: metadata.EntryPoint
    """How to load it."""
    distribution: str
    """Name of the distribution that publishes it."""
    version: str
    """Version of that distribution."""
    aliases: tuple[str, ...]
    """Other names, from the module's literal `ALIASES`."""
    summary: str
    """First line of the module's docstring, or else the distribution's summary."""

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()


def find_methods() -> list[Candidate]:
    """List the built-in methods, then the installed ones.

    Returns:
        One candidate per entry point; names may repeat, the registry decides.
    """
    version = own_version()
    builtins = [
        Candidate(name, entry, OWN_DISTRIBUTION, version, *_read_declarations(entry.module, ""))
        for name in BUILTINS
        for entry in [metadata.EntryPoint(name, f"softprompt_zoo.methods.{name}", GROUP)]
    ]
    return builtins + _find(GROUP)


def find_wrappers() -> list[Candidate]:
    """List the installed wrapper plugins.

    Returns:
        One candidate per entry point of `WRAPPER_GROUP`.
    """
    return _find(WRAPPER_GROUP)


def own_version() -> str:
    """Return the installed version of this package, or `"unknown"` when it runs from a bare folder."""
    try:
        return metadata.version(OWN_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def _find(group: str) -> list[Candidate]:
    allowed = os.environ.get(ENVIRONMENT_VARIABLE)
    names = None if allowed is None else {name.strip() for name in allowed.split(",") if name.strip()}
    candidates = []
    for entry in metadata.entry_points(group=group):
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else ""
        if names is not None and not names & {entry.name, distribution}:
            continue
        fallback = (entry.dist.metadata["Summary"] or "") if entry.dist else ""
        aliases, summary = _read_declarations(entry.module, fallback)
        candidates.append(Candidate(entry.name, entry, distribution, version, aliases, summary))
    return candidates


@functools.cache
def _read_declarations(module: str, fallback_summary: str) -> tuple[tuple[str, ...], str]:
    """Read `ALIASES` and the summary from a module's source text, without importing it."""
    try:
        path = _source_path(module)
        tree = ast.parse(path.read_text(encoding="utf-8")) if path else ast.Module([], [])
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return (), fallback_summary
    summary = (ast.get_docstring(tree) or fallback_summary).strip().split("\n")[0]
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "ALIASES" for t in node.targets):
            try:
                return tuple(str(alias) for alias in ast.literal_eval(node.value)), summary
            except (ValueError, TypeError):
                return (), summary
    return (), summary


def _source_path(module: str) -> Path | None:
    """Find a module's file; `importlib.util.find_spec` would import its parent packages."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for index in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = ".".join([top, *rest[: index + 1]])
        spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None
