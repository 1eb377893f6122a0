"""A card as a file: it ends in a mark with its checksum, by which one that a user has written or changed is told."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.files.writing import write_atomically

NAME = "README.md"
PLACE = "path/or/name-of-this-prompt"
"""Stands for the folder or repository until it is pushed to one."""
MOST_BYTES = 2**20
"""Of a file that may be a card of ours. Our choice."""
USE = "## Use\n"
"""The heading in front of which the sections of a run go."""
MARK = "<!-- softprompt-zoo writes this card until you change it: {} -->\n"
MARKED = re.compile(re.escape(MARK).replace(r"\{\}", "([0-9a-f]{8})"))


def marked(content: str) -> str:
    """Return a card with the mark that it is ours at its end; `content` ends in a line feed."""
    return content + MARK.format(_checksum(content))


def is_generated(text: str) -> bool:
    """Return whether a card is as we have written it."""
    content, mark = _split(text)
    found = MARKED.fullmatch(mark)
    return found is not None and found[1] == _checksum(content)


def read(directory: Path) -> str | None:
    """Return the text of a folder's card.

    Args:
        directory: The folder.

    Returns:
        The text, the user's or ours; `None` if there is none that can be read.
    """
    path = directory / NAME
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None


def write(directory: Path, content: str) -> None:
    """Write a card, unless there is something of the user's in its place.

    Args:
        directory: Where to; it must exist.
        content: The card, without the mark.
    """
    path = directory / NAME
    if path.exists() or path.is_symlink():
        there = read(directory) if path.is_file() else None
        if there is None or not is_generated(there):
            return
    write_atomically(path, marked(content).encode())


def remove(directory: Path) -> None:
    """Remove a card of ours; a user's stays."""
    if is_generated(read(directory) or ""):
        (directory / NAME).unlink()


def named(text: str, repository: str) -> str:
    """Return a card that says where it lies; one that the user has changed as it is.

    Args:
        text: The card.
        repository: Name on the hub.
    """
    return marked(_split(text)[0].replace(PLACE, repository)) if is_generated(text) else text


def field(text: str, name: str) -> Any:
    """Return a field of a card's metadata; `None` if it has none of that name."""
    from huggingface_hub import ModelCard

    return ModelCard(text).data.get(name)


def tagged(text: str, tags: Sequence[str]) -> str:
    """Return a card of ours with more tags; one that the user has changed as it is."""
    return marked(changed(text, tags=tags)) if tags and is_generated(text) else text


def changed(text: str, sections: Sequence[str] = (), tags: Sequence[str] = (), **fields: Any) -> str:
    """Return the content of a card of ours with more in it.

    Args:
        text: The card, as it was read.
        sections: Sections to put in front of the one on how it is used.
        tags: Tags to add.
        **fields: Fields of huggingface_hub's `ModelCardData`.

    Returns:
        The card, without the mark.
    """
    from huggingface_hub import ModelCard

    card = ModelCard(_split(text)[0])
    card.data["tags"] = list(dict.fromkeys([*card.data.get("tags", []), *tags]))
    for name, value in fields.items():
        card.data[name] = value
    before, use, after = card.text.partition(USE)
    card.text = before + "".join(f"{section}\n" for section in sections) + use + after
    return str(card)


def _split(text: str) -> tuple[str, str]:
    """Split a card into its content and what may be the mark."""
    content, newline, last = text.removesuffix("\n").rpartition("\n")
    return content + newline, f"{last}\n"


def _checksum(content: str) -> str:
    return f"{zlib.crc32(content.encode()):08x}"
