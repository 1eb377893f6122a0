"""Inspect the environment: versions and installed extras."""

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from softprompt_zoo.training.findings import Finding

PACKAGE = "softprompt-zoo"
SHOWN = (PACKAGE, "torch", "transformers", "peft", "accelerate", "datasets")


def look_at_environment() -> list[Finding]:
    """Return the versions of the relevant packages, and what is missing for each extra."""
    versions = [f"python {platform.python_version()}", *filter(None, map(_version, SHOWN))]
    return [Finding("versions", ", ".join(versions)), *_extras()]


def _version(name: str) -> str | None:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    try:
        own = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        yield Finding("extras", "not known: the package is not installed, but runs from its source folder")
        return
    needs = [Requirement(line) for line in own.get_all("Requires-Dist") or []]
    for extra in own.get_all("Provides-Extra") or []:
        missing = sorted({need.name for need in needs if _is_of(need, extra) and _version(need.name) is None})
        state = f'missing: {", ".join(missing)}; pip install "{PACKAGE}[{extra}]"' if missing else "installed"
        yield Finding(f"extra {extra}", state)


def _is_of(need: Requirement, extra: str) -> bool:
    """Return whether a package is needed for an extra only."""
    marker = need.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
