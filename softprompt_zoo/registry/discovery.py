"""Finding installed plugins from metadata and source text alone: no plugin code runs here."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from importlib import metadata

from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.registry.declarations import read_declarations

GROUP = "softprompt_zoo"
"""Entry-point group of methods; the entry's name is the method's canonical name."""

WRAPPER_GROUP = "softprompt_zoo.wrappers"
"""Entry-point group of plugins that wrap every method's hooks."""

ENVIRONMENT_VARIABLE = "SOFTPROMPT_ZOO_PLUGINS"
"""Comma-separated names of the entry points or distributions that may load; empty for built-ins only."""

PROJECT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
"""A project's name: https://packaging.python.org/en/latest/specifications/name-normalization/ with a maximum length."""
VERSION = re.compile(r"(?=.{1,100}\Z)(?:[0-9]{1,9}!)?[0-9][A-Za-z0-9]*(?:[._+-][A-Za-z0-9]+)*")
"""A version: https://packaging.python.org/en/latest/specifications/version-specifiers/, slightly relaxed."""
OWN_DISTRIBUTION = "softprompt-zoo"


def normalize(name: str) -> str:
    """Fold a name so that case, `-` and `_` do not matter."""
    return name.casefold().replace("-", "").replace("_", "")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An offered plugin, loaded or not; equal to another of the same name from the same package."""

    name: str
    """Canonical name, as published."""
    group: str
    """`GROUP` or `WRAPPER_GROUP`."""
    distribution: str
    """Name of the distribution that publishes it."""
    version: str
    """Version of that distribution."""
    load: Callable[[], object] = dataclasses.field(compare=False, repr=False)
    """Imports the plugin and returns it."""
    aliases: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Other names, from the module's literal `ALIASES`."""
    summary: str = dataclasses.field(default="", compare=False)
    """First line of the module's docstring, or the distribution's summary if there is none."""
    peft_types: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """PEFT types that it loads, from the module's literal `PEFT_TYPES`."""

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def kind(self) -> str:
        """`"method"` or `"wrapper"`."""
        return "method" if self.group == GROUP else "wrapper"

    def describe(self) -> str:
        """Name it for a message."""
        return f"{self.kind} {self.name!r} of {self.origin}"


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
    """What is wrong with it, in one line; `None` if no problem is known."""


def find_plugins() -> list[Candidate]:
    """List the built-in methods, the installed ones, and the installed wrappers; names may repeat."""
    built_in = [metadata.EntryPoint(name, f"softprompt_zoo.methods.{name}", GROUP) for name in BUILTINS]
    version = own_version()
    found = [_candidate(entry, OWN_DISTRIBUTION, version, "") for entry in built_in]
    entries = metadata.entry_points()  # only once: each call reads those of every package
    return found + _installed(entries.select(group=GROUP)) + _installed(entries.select(group=WRAPPER_GROUP))


def own_version() -> str:
    """Return the installed version of this package, or `"unknown"` when it runs from a bare folder."""
    try:
        return metadata.version(OWN_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def _allowed_names() -> set[str] | None:
    """Return the names of the plugins that the environment variable allows; `None` for all."""
    allowed = os.environ.get(ENVIRONMENT_VARIABLE)
    return None if allowed is None else {normalize(name.strip()) for name in allowed.split(",")} - {""}


def _installed(entries: Iterable[metadata.EntryPoint]) -> list[Candidate]:
    names = _allowed_names()
    found = []
    for entry in entries:
        distribution, version, summary = _publisher(entry)
        if names is None or names & {normalize(entry.name), normalize(distribution)}:
            found.append(_candidate(entry, distribution, version, summary))
    return sorted(found, key=lambda candidate: (candidate.name, candidate.origin))


def _publisher(entry: metadata.EntryPoint) -> tuple[str, str, str]:
    """Return the name, version and summary of the distribution that publishes an entry point, as far as known."""
    if entry.dist is None:
        return "unknown", "", ""
    return entry.dist.name or "unknown", entry.dist.version or "", entry.dist.metadata["Summary"] or ""


def _candidate(entry: metadata.EntryPoint, distribution: str, version: str, fallback_summary: str) -> Candidate:
    declared = read_declarations(entry)

    def load() -> object:
        if not entry.pattern.match(entry.value):
            raise ValueError(f"its entry point is {entry.value!r}; expected 'module' or 'module:attribute'")
        return entry.load()

    summary = declared.summary or fallback_summary
    return Candidate(
        entry.name, entry.group, distribution, version, load, declared.aliases, summary, declared.peft_types
    )


def install_advice(distribution: str, version: str) -> str:
    """Return how to get a method's package; only a valid project name and version go into a command line.

    Args:
        distribution: Package named by a file.
        version: Its version in the file; empty if the method was registered by hand.

    Returns:
        What to do, for a message.
    """
    if not version:
        return "it was registered by hand: zoo.register its plugin first"
    if PROJECT.fullmatch(distribution) and VERSION.fullmatch(version):
        return f"run: pip install {distribution}=={version}"
    return "the file names no package that could be installed; ask its author"
