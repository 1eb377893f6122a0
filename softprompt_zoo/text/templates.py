"""Templates with soft slots, split into words, fields and slots."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from softprompt_zoo import placeholders

SYNTAX = "{soft:10} for the next ten virtual tokens, {soft[0:3]} for tokens 0, 1 and 2, or {soft[4]} for one"
OPTIONS = ("max_length", "padding")
"""Keywords of `encode` that are not fields."""
MOST_SLOTS = 2**20
"""Most slots in a template, and virtual tokens it may name; longer than any model's positions. Our choice."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A place that is filled with a user's text."""

    name: str


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for virtual tokens."""

    tokens: range


@dataclasses.dataclass(frozen=True)
class Template:
    """A template, split into words, fields and slots."""

    parts: list[list[str | Field | Slot]]
    """One list for a text; one for each message of a chat."""
    messages: list[Mapping[str, Any]]
    """The messages of a chat; empty for a text."""

    @property
    def all_parts(self) -> list[str | Field | Slot]:
        """The parts of all messages."""
        return list(itertools.chain.from_iterable(self.parts))

    @property
    def num_slots(self) -> int:
        """Number of its slots."""
        return sum(len(part.tokens) for part in self.all_parts if isinstance(part, Slot))


def check_count(template: Template, max_length: int | None) -> None:
    """Refuse more slots than a row may have, before a list of them is built.

    Args:
        template: The template.
        max_length: Maximum length of a row, in tokens; `None` for any length.

    Raises:
        ValueError: If it has too many.
    """
    count = template.num_slots
    if max_length is not None and count > max_length:
        raise ValueError(
            f"max_length is {max_length}, but the template alone has {count} slots, which are never cut; use fewer "
            "slots, or a larger max_length"
        )
    if count > MOST_SLOTS:
        raise ValueError(f"the template has {count} slots; use at most {MOST_SLOTS}")


def parse(template: Any) -> Template:
    """Split a template into its parts.

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
        _check_message(number, message)
        own, count = _parse_text(message["content"], count)
        parts.append(own)
    return Template(parts, list(template))


def _check_message(number: int, message: Any) -> None:
    is_one = isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
    if not is_one:
        raise TypeError(f"message {number} of the template is {message!r}; expected a role and a content, both texts")


def _parse_text(template: str, count: int) -> tuple[list[str | Field | Slot], int]:
    """Split a text into its parts; `count` virtual tokens were counted before it."""
    texts, found = _split(template)
    parts: list[str | Field | Slot] = [texts[0]]
    for placeholder, text in zip(found, texts[1:], strict=True):
        if re.match(r"soft(?!\w)", placeholder):
            slot = _slot(placeholder, count)
            count += 0 if "[" in placeholder else len(slot.tokens)
            parts += [slot, text]
        else:
            parts += [_field(template, placeholder), text]
    return parts, count


def _split(template: str) -> tuple[list[str], list[str]]:
    try:
        return placeholders.split(template)
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write {{{{ and }}}} for literal braces") from None


def _field(template: str, placeholder: str) -> Field:
    if placeholder in OPTIONS:
        raise ValueError(
            f"template {template!r} has the field {{{placeholder}}}, which cannot be filled: {placeholder}=… is an "
            "option of encode; give the field another name"
        )
    if not placeholder.isidentifier():
        raise ValueError(
            f"template {template!r} has {{{placeholder}}}; expected the name of a field, as in {{text}}, or {SYNTAX}"
        )
    return Field(placeholder)


def _slot(placeholder: str, count: int) -> Slot:
    tokens = _slot_tokens(placeholder, count)
    if not tokens:
        raise ValueError(f"the slot {{{placeholder}}} names no virtual token; expected {SYNTAX}")
    if tokens.stop > MOST_SLOTS:
        raise ValueError(
            f"the slot {{{placeholder}}} names virtual token {tokens.stop - 1}; a template may name the first "
            f"{MOST_SLOTS}"
        )
    return Slot(tokens)


def _slot_tokens(placeholder: str, count: int) -> range:
    """Return the virtual tokens that a slot names; empty if it is malformed."""
    if counted := re.fullmatch(r"soft:([0-9]{1,18})", placeholder):
        return range(count, count + int(counted[1]))
    if named := re.fullmatch(r"soft\[([0-9]{1,18})(?::([0-9]{1,18}))?\]", placeholder):
        start, end = named.groups()
        return range(int(start), int(start) + 1 if end is None else int(end))
    return range(0)
