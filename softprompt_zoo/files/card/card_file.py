"""A card as a file: it ends in a mark with its checksum, which tells ours from one that a user wrote or changed."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.files.writing import write_atomically

NAME = "README.md"
PLACE = "path/or/name-of-this-prompt"
"""Placeholder for the folder or repository until the card is pushed to one."""
MOST_BYTES = 2**20
"""Maximum size of a card of ours, in bytes. Our choice."""
USE = "## Use\n"
"""The heading before which the sections of a run are inserted."""
MARK = "<!-- softprompt-zoo writes this card until you change it: {} -->\n"
MARKED = re.compile(re.escape(MARK).replace(r"\{\}", "([0-9a-f]{8})"))


def marked(content: str) -> str:
    """Append the mark that the card is ours; `content` ends in a line feed."""
    return content + MARK.format(_checksum(content))


def is_generated(text: str) -> bool:
    """Return whether a card is unchanged since we wrote it."""
    content, mark = _split(text)
    found = MARKED.fullmatch(mark)
    return found is not None and found[1] == _checksum(content)


def read(directory: Path) -> str | None:
    """Return the text of a folder's card.

    Args:
        directory: The folder.

    Returns:
        The text, the user's or ours; `None` if there is no readable card.
    """
    path = directory / NAME
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None


def write(directory: Path, content: str) -> None:
    """Write a card, unless the user has one in its place.

    Args:
        directory: The folder to write to; it must exist.
        content: The card, without the mark.
    """
    path = directory / NAME
    if path.exists() or path.is_symlink():
        there = read(directory) if path.is_file() else None
        if there is None or not is_generated(there):
            return
    write_atomically(path, marked(content).encode())


def remove(directory: Path) -> None:
    """Remove a card of ours; keep a user's."""
    if is_generated(read(directory) or ""):
        (directory / NAME).unlink()


def named(text: str, repository: str) -> str:
    """Insert the repository's name into a card; return one that the user has changed as it is.

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
    """Add tags to a card of ours; return one that the user has changed as it is."""
    return marked(changed(text, tags=tags)) if tags and is_generated(text) else text


def changed(text: str, sections: Sequence[str] = (), tags: Sequence[str] = (), **fields: Any) -> str:
    """Return the content of a card of ours with additions.

    Args:
        text: The card, as it was read.
        sections: Sections to insert before the one on usage.
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
    """Split a card into its content and what may be its mark."""
    content, newline, last = text.removesuffix("\n").rpartition("\n")
    return content + newline, f"{last}\n"


def _checksum(content: str) -> str:
    return f"{zlib.crc32(content.encode()):08x}"
