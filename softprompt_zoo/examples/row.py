"""One row of data with its place, and how messages show its content."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SHOWN_NAMES = 10
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Row:
    """The fields of one row, and its file and line for messages."""

    place: str
    fields: Mapping[str, object]
    may_hold_lists: bool


def listed(names: Iterable[str]) -> str:
    """Format names as a list, cut if there are many."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:_SHOWN_NAMES] + (["..."] if len(shown) > _SHOWN_NAMES else [])) or "none"


def short(value: object) -> str:
    """Format a value as JSON, cut to a readable length and safe to print anywhere."""
    return cut(json.dumps(value))


def cut(text: str) -> str:
    """Cut text to a readable length, on one line."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
