"""The forms of rows, which are recognized by their fields."""

from collections.abc import Mapping
from typing import Any, Protocol

from softprompt_zoo.examples import Pairs, chats, is_pair, tagged
from softprompt_zoo.examples.row import Row


class Form(Protocol):
    """A reader of rows of one form."""

    read: str
    """The fields that are read, for messages."""

    def example(self, row: Row) -> Any:
        """Check a row, and return its example."""


FORMS: Mapping[str, Any] = {"pairs": Pairs, "chats": chats.Chats, "tagged": tagged.TaggedWords}


def form_of(first: Row) -> str:
    """Return the form of rows from the fields of the first one; pairs if it matches several forms or none."""
    if is_pair(first.fields):
        return "pairs"
    if chats.FIELD in first.fields:
        return "chats"
    if tagged.WORDS in first.fields and any(name in first.fields for name in tagged.TAGS):
        return "tagged"
    return "pairs"
