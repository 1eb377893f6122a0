"""A package for a new method, made from a copy of `plugins/softprompt-zoo-template` in the data folder."""

import importlib.util
import keyword
import re
from pathlib import Path

from softprompt_zoo.operations.new_folder import check_free, moved_into_place
from softprompt_zoo.registry.discovery import normalize
from softprompt_zoo.registry.registry import registry

TEMPLATE = Path(__file__).parents[1] / "data" / "plugin"
SUFFIX = ".template"
"""Suffix of the copies: they are not code of this package."""
NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
LONGEST = 60
"""Most characters in a name, which becomes part of a package and a module name. Our choice."""
KEPT_SECTION = re.compile(r"^## Install and test\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
"""The section of the template's README that applies to a copy."""


def method_name(name: str) -> str:
    """Check the name of a new method.

    Args:
        name: The user's name for it; case does not matter, and `-` is the same as `_`.

    Returns:
        The canonical name.

    Raises:
        ValueError: If no package can have this name, or a method or a module already has it.
    """
    canonical = name.strip().lower().replace("-", "_")
    if not NAME.fullmatch(canonical) or len(canonical) > LONGEST:
        raise ValueError(
            f"NAME is {name!r}; expected a letter, then letters, digits and single '_' or '-', of at most {LONGEST} "
            "characters, such as my_method"
        )
    if keyword.iskeyword(canonical):
        raise ValueError(f"NAME is {name!r}, a Python keyword; choose another, such as {canonical}_prompt")
    _check_free_name(name, canonical)
    return canonical


def _check_free_name(name: str, canonical: str) -> None:
    for found in registry.candidates().values():
        taken = next((one for one in (found.name, *found.aliases) if normalize(one) == normalize(canonical)), None)
        if taken is not None:
            raise ValueError(f"NAME is {name!r}, but {found.describe()} already has the name {taken!r}; choose another")
    module = _module(canonical)
    if importlib.util.find_spec(module) is not None:
        raise ValueError(f"NAME is {name!r}, but a module {module} is installed; choose another name, or uninstall it")


def distribution(name: str) -> str:
    """Return the name of a method's package."""
    return f"softprompt-zoo-{name.replace('_', '-')}"


def _module(name: str) -> str:
    return f"softprompt_zoo_{name}"


def write_package(name: str, directory: Path) -> list[str]:
    """Write the package, completely or not at all.

    Args:
        name: From `method_name`.
        directory: The folder to write; missing or empty.

    Returns:
        The paths of its files, relative to the folder.

    Raises:
        ValueError: If the folder is not empty.
    """
    check_free(directory)
    files = dict(_file(path, name) for path in sorted(TEMPLATE.rglob(f"*{SUFFIX}")))
    with moved_into_place(directory) as folder:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    return list(files)


def _file(path: Path, name: str) -> tuple[str, str]:
    """Return the path and text of a file from the template."""
    place = path.relative_to(TEMPLATE).as_posix().removesuffix(SUFFIX).replace(_module("template"), _module(name))
    text = path.read_text("utf-8")
    return place, _readme(text, name) if place == "README.md" else _renamed(text, name)


def _renamed(text: str, name: str) -> str:
    title = name.replace("_", " ").capitalize()
    changes = {
        distribution("template"): distribution(name),
        _module("template"): _module(name),
        "\ntemplate = ": f"\n{name} = ",
        '"template"': f'"{name}"',
        "TestTemplate": f"Test{title.title().replace(' ', '')}",
        '"""Template:': f'"""{title}:',
    }
    for before, after in changes.items():
        text = text.replace(before, after)
    return text


def _readme(text: str, name: str) -> str:
    """Keep the section on installing and testing; the rest is about copying."""
    kept = KEPT_SECTION.search(text)
    section = kept[0].rstrip() if kept else ""
    return f"# {distribution(name)}\n\nA soft-prompt method for softprompt_zoo: `{name}`.\n\n{section}\n"
