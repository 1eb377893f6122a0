"""Configuration files: the flags of a command by the same names, in TOML or YAML."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.config import typed
from softprompt_zoo.config.documents import Document, dump_yaml, read_document

OTHER_KEYS = {"options": "option", "label_words": "label_word"}
"""The keys of fields whose flag has another name, because it gives only one of several values."""


def read_config(path: Path, kind: Any, try_field: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Read settings from a file.

    Args:
        path: A TOML or YAML file. Its keys are the flags without leading dashes; `-` and `_` are equivalent.
        kind: The dataclass of the settings, whose annotations define what is allowed.
        try_field: Called with one field at a time, such as `steps=0`; its errors are reported with the field's place.

    Returns:
        Field name to value, for the fields in the file.

    Raises:
        ValueError: If the file cannot be read, or has a key or a value that is not allowed.
    """
    document = read_document(path)
    if not isinstance(document.content, Mapping):
        raise ValueError(
            f"{path} holds {typed.shown(document.content)[3:]}; expected keys with values, as in steps: 100"
        )
    hints, _ = typed.fields_of(kind)
    names = {OTHER_KEYS.get(name, name): name for name in hints}
    found: dict[str, Any] = {}
    for key, value in document.content.items():
        name = _field_of(document, key, names)
        if name in found:
            raise ValueError(
                f"{document.place(key)}: {key!r} was given above in its other spelling, with - or _; leave one out"
            )
        found[name] = _value(document, key, value, hints[name])
        _try(document, key, try_field, {name: found[name]})
    return found


def option_place(path: Path, message: str) -> str | None:
    """Return the place in a file of the method's option that a message is about.

    Args:
        path: A file that `read_config` has read.
        message: The error message about the options.

    Returns:
        File and line of the first option that the message names; `None` if it names none in the file.
    """
    document = read_document(path)
    given = map(str, document.content.get(OTHER_KEYS["options"], ()))
    found = [(match.start(), key) for key in given if (match := re.search(rf"\b{re.escape(key)}\b", message))]
    return document.place(OTHER_KEYS["options"], min(found)[1]) if found else None


def config_text(values: Mapping[str, Any], head: str) -> str:
    """Return settings as YAML for `read_config`; not as TOML, which has no `null`, a possible value of an option.

    Args:
        values: Field name to JSON value; fields that are `None` are left out.
        head: A comment above the settings.
    """
    return dump_yaml({OTHER_KEYS.get(name, name): value for name, value in values.items() if value is not None}, head)


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint for an unknown name: the closest known name, or all of them."""
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
        expected = error.expected.removesuffix(" or None")  # None is given by leaving the key out
        raise ValueError(f"{document.place(key)}: {key} {typed.shown(value)}; expected {expected}") from error


def _try(document: Document, key: str, try_field: Callable[..., Any] | None, field: Mapping[str, Any]) -> None:
    try:
        if try_field is not None:
            try_field(**field)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{document.place(key)}: {error}") from error
