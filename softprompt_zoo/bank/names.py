"""Names of prompts in a bank: keys that every store can hold."""

import re

LONGEST_NAME = 200
"""In characters; stores limit the length of their keys."""
_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


def is_name(name: object) -> bool:
    """Return whether a bank can hold a prompt of this name."""
    return isinstance(name, str) and len(name) <= LONGEST_NAME and bool(_PATTERN.fullmatch(name))


def check_name(name: object, source: str = "") -> None:
    """Refuse an invalid name.

    Args:
        name: The name as given.
        source: Where it comes from, for the message.

    Raises:
        ValueError: If a bank cannot hold a prompt of this name.
    """
    if not is_name(name):
        raise ValueError(
            f"prompt name is {name!r}{source}; expected at most {LONGEST_NAME} letters, digits, '_' and '-'"
        )
