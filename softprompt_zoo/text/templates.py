"""Templates with soft slots, cut into words, fields and slots."""

import dataclasses
import itertools
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

SYNTAX = "{soft:10} for the next ten virtual tokens, {soft[0:3]} for tokens 0, 1 and 2, or {soft[4]} for one"
OPTIONS = ("max_length", "padding")
"""Keywords of `encode` that are no fields."""
MOST_SLOTS = 2**20
"""Slots of a template, and virtual tokens it may name; longer than the positions of any model. Our choice."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A place that a text of the user's fills."""

    name: str


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place of virtual tokens."""

    tokens: range


@dataclasses.dataclass(frozen=True)
class Template:
    """A template, cut into words, fields and slots."""

    parts: list[list[str | Field | Slot]]
    """One list for a text; one for each message of a chat."""
    messages: list[Mapping[str, Any]]
    """The messages of a chat; empty for a text."""

    @property
    def all_parts(self) -> list[str | Field | Slot]:
        """Those of all messages."""
        return list(itertools.chain.from_iterable(self.parts))


def check_count(template: Template, max_length: int | None) -> None:
    """Refuse more slots than a row may have, before there is a list of them.

    Args:
        template: The template.
        max_length: Longest row, in tokens; `None` for any length.

    Raises:
        ValueError: If it has.
    """
    count = sum(len(part.tokens) for part in template.all_parts if isinstance(part, Slot))
    if max_length is not None and count > max_length:
        raise ValueError(
            f"max_length is {max_length}, but the template alone has {count} slots, which are never cut; use fewer "
            "slots, or a larger max_length"
        )
    if count > MOST_SLOTS:
        raise ValueError(f"the template has {count} slots; use at most {MOST_SLOTS}")


def parse(template: Any) -> Template:
    """Cut a template into its parts.

    Args:
        template: A text; or a chat, a list of messages with a role and a content.

    Returns:
        The parts.

    Raises:
        TypeError: If it is neither.
        ValueError: If a field or a slot is malformed, or names more virtual tokens than a template may.
    """
    if isinstance(template, str):
        return Template([_parse_text(template, 0)[0]], [])
    if not isinstance(template, Sequence) or not template:
        raise TypeError(f"template is {template!r}; expected a text, or a list of messages with a role and a content")
    count, parts = 0, []
    for number, message in enumerate(template):
        if not _is_message(message):
            raise TypeError(
                f"message {number} of the template is {message!r}; expected a role and a content, both texts"
            )
        own, count = _parse_text(message["content"], count)
        parts.append(own)
    return Template(parts, list(template))


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _parse_text(template: str, count: int) -> tuple[list[str | Field | Slot], int]:
    """Cut a text into its parts; `count` virtual tokens were counted before it."""
    parts: list[str | Field | Slot] = []
    for words, name, spec, conversion in _split(template):
        parts.append(words)
        if name is None:
            continue
        if not re.match(r"soft(?!\w)", name):
            parts.append(_field(template, name, spec, conversion))
            continue
        slot = _slot(name, spec, conversion, count)
        parts.append(slot)
        count += len(slot.tokens) if name == "soft" else 0
    return parts, count


def _split(template: str) -> list[tuple[str, str | None, str, str | None]]:
    """Cut a text at its braces: words, and the name, specification and conversion that stand after them."""
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write {{{{ and }}}} for braces that are words") from None
    return [(words, name, spec or "", conversion) for words, name, spec, conversion in found]


def _field(template: str, name: str, spec: str, conversion: str | None) -> Field:
    if name in OPTIONS:
        raise ValueError(
            f"template {template!r} has the field {{{name}}}, which cannot be filled: {name}=… is an option of encode; "
            "give the field another name"
        )
    if not name.isidentifier() or spec or conversion:
        shown = _shown(name, spec, conversion)
        raise ValueError(
            f"template {template!r} has {shown}; expected the name of a field, as in {{text}}, or {SYNTAX}"
        )
    return Field(name)


def _slot(name: str, spec: str, conversion: str | None, count: int) -> Slot:
    shown = _shown(name, spec, conversion)
    tokens = _slot_tokens(shown, count)
    if not tokens:
        raise ValueError(f"the slot {shown} names no virtual token; expected {SYNTAX}")
    if tokens.stop > MOST_SLOTS:
        raise ValueError(
            f"the slot {shown} names virtual token {tokens.stop - 1}; a template may name the first {MOST_SLOTS}"
        )
    return Slot(tokens)


def _slot_tokens(slot: str, count: int) -> range:
    """Return the virtual tokens that a slot names as it is written; none if it is malformed."""
    if counted := re.fullmatch(r"{soft:([0-9]{1,18})}", slot):
        return range(count, count + int(counted[1]))
    if named := re.fullmatch(r"{soft\[([0-9]{1,18})(?::([0-9]{1,18}))?\]}", slot):
        start, end = named.groups()
        return range(int(start), int(start) + 1 if end is None else int(end))
    return range(0)


def _shown(name: str, spec: str, conversion: str | None) -> str:
    """Write a replacement field as it is in the template."""
    return "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
