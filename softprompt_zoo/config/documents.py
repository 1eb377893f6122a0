"""TOML and YAML files as values, with the line of each key."""

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from softprompt_zoo.errors import one_line

SUFFIXES = (".toml", ".yaml", ".yml")
FLOAT = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$")
"""A number such as 1e-3, which is a number in YAML 1.2 and to people, but text in YAML 1.1."""
BOOL, TEXT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"
"""YAML's names of types."""


@dataclasses.dataclass(frozen=True)
class Document:
    """The content of a file."""

    path: Path
    content: Any
    line_of: Callable[[Sequence[str]], int | None]
    """Returns the line of a key, counted from 1, given the path to it, such as `("option", "init")`."""

    def place(self, *keys: str) -> str:
        """Return file and line of a key; only the file if the line is unknown."""
        line = self.line_of(keys)
        return str(self.path) if line is None else f"{self.path}:{line}"


def read_document(path: Path) -> Document:
    """Read a TOML or YAML file.

    Args:
        path: The file; its suffix determines the format.

    Returns:
        Its content, an empty mapping for an empty file.

    Raises:
        ValueError: If it cannot be read, or is in neither format.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{str(path)!r} is not a configuration file; expected a name that ends in {', '.join(SUFFIXES)}"
        )
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a TOML or YAML file") from error
    return _read_toml(path, text) if path.suffix == ".toml" else _read_yaml(path, text)


def dump_yaml(values: Mapping[str, Any], head: str) -> str:
    """Return JSON values as YAML for `read_document`, in their order.

    Args:
        values: The values.
        head: A comment above them.
    """
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    return "".join(f"# {line}\n" for line in head.splitlines()) + str(text)


def _read_toml(path: Path, text: str) -> Document:
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}; strings need quotation marks") from error
    return Document(path, content, lambda keys: _toml_line(text, keys))


def _toml_line(text: str, keys: Sequence[str]) -> int | None:
    """Return the line after the longest beginning of the file that is valid TOML without the key."""
    lines, last = text.splitlines(keepends=True), 0
    for count in range(1, len(lines) + 1):
        try:
            content = tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:  # inside a value of several lines
            continue
        if _holds(content, keys):
            return last + 1
        last = count
    return None


def _holds(content: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            return False
        content = content[key]
    return True


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number and a key `on` as text; rejects duplicate keys, one of which would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            key.tag = key.tag.replace(BOOL, TEXT)
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", node.value[index][0].start_mark
                )
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines in quotation marks, where YAML would write a blank line for each newline."""


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar(TEXT, text, style='"' if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _read_yaml(path: Path, text: str) -> Document:
    try:
        node = yaml.compose(text, Loader=_Loader)
        content = {} if node is None else yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {one_line(error)}") from error
    return Document(path, content, lambda keys: _yaml_line(node, keys))


def _yaml_line(node: Any, keys: Sequence[str]) -> int | None:
    line = None
    for wanted in keys:
        found = [pair for pair in node.value if pair[0].value == wanted]
        if not found:
            return line
        key, node = found[0]
        line = key.start_mark.line + 1
    return line
