"""Configuration files: a command's flags under the same names, in TOML or YAML."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.config import typed
from softprompt_zoo.config.documents import Document, dump_yaml, read_document

OTHER_KEYS = {"options": "option", "label_words": "label_word"}
"""The keys of fields whose flag has another name: each `--option` gives one of `options`, `--label-word` a word."""


def read_config(path: Path, kind: Any, try_field: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Read the settings that a file gives.

    Args:
        path: A TOML or YAML file. Its keys are the flags without the dashes in front; within, `-` and `_` are the same.
        kind: The dataclass of the settings, whose annotations say what is allowed.
        try_field: Called with one field at a time, `steps=0` say; what it raises is told with the field's place.

    Returns:
        By name of the field what the file says; what it leaves out is left out.

    Raises:
        ValueError: If the file cannot be read, or has a key or a value that is not allowed.
    """
    document = read_document(path)
    if not isinstance(document.content, Mapping):
        raise ValueError(f"{path} holds {typed.shown(document.content)[3:]}; expected keys with values, as steps: 100")
    hints, _ = typed.fields_of(kind)
    names = {OTHER_KEYS.get(name, name): name for name in hints}
    found: dict[str, Any] = {}
    for key, value in document.content.items():
        name = _field_of(document, key, names)
        if name in found:
            raise ValueError(f"{document.place(key)}: {key!r} was given above, with - for _; leave one out")
        found[name] = _value(document, key, value, hints[name])
        _try(document, key, try_field, {name: found[name]})
    return found


def option_place(path: Path, message: str) -> str | None:
    """Return where a file gives the option of a method that a message is about.

    Args:
        path: A file that `read_config` has read.
        message: What a check of the options said.

    Returns:
        File and line of the option that the message names first; `None` if it names none of the file's.
    """
    document = read_document(path)
    given = map(str, document.content.get(OTHER_KEYS["options"], ()))
    found = [(match.start(), key) for key in given if (match := re.search(rf"\b{re.escape(key)}\b", message))]
    return document.place(OTHER_KEYS["options"], min(found)[1]) if found else None


def config_text(values: Mapping[str, Any], head: str) -> str:
    """Write settings as `read_config` reads them, in YAML: TOML has no `null`, which an option of a method may be.

    Args:
        values: By name of the field JSON values; fields that are `None` are left out.
        head: A comment above.
    """
    return dump_yaml({OTHER_KEYS.get(name, name): value for name, value in values.items() if value is not None}, head)


def nearest(name: str, known: Sequence[str]) -> str:
    """Return what to write for a name that is not known: the nearest of those that are, or any of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected any of {', '.join(known)}"


def _field_of(document: Document, key: Any, names: Mapping[str, str]) -> str:
    written = str(key).replace("-", "_")
    if written not in names:
        raise ValueError(f"{document.place(str(key))}: unknown key {key!r}; {nearest(written, [*names])}")
    return names[written]


def _value(document: Document, key: str, value: Any, hint: Any) -> Any:
    try:
        return typed.convert(hint, value, key)
    except typed.MismatchError as error:
        expected = error.expected.removesuffix(" or None")  # a key that is left out is none
        raise ValueError(f"{document.place(key)}: {key} {typed.shown(value)}; expected {expected}") from error


def _try(document: Document, key: str, try_field: Callable[..., Any] | None, field: Mapping[str, Any]) -> None:
    try:
        if try_field is not None:
            try_field(**field)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{document.place(key)}: {error}") from error
