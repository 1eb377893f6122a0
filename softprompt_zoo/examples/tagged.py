"""Tagged words: rows of words with a tag for each word."""

from dataclasses import dataclass, field

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.fields import items, label, present, task_of, text
from softprompt_zoo.examples.row import Row

WORDS = "tokens"
TAGS = ("tags", "ner_tags", "pos_tags", "labels")
"""Default names of the field with the tags; the first one that exists is used."""


@dataclass(frozen=True)
class Tagged:
    """One row of data."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    """One tag for each word."""
    place: str = field(default="", compare=False, repr=False)
    """File and line, for messages."""
    task: str | None = field(default=None, compare=False)
    """The task that the row belongs to, if a file has several."""


class TaggedWords:
    """A form of data: rows of words and their tags."""

    read = "tokens and tags, or the names given as input_field and target_field"

    def __init__(self, first: Row, input_field: str | None, target_field: str | None) -> None:
        """Find the fields of words and tags.

        Args:
            first: The first row.
            input_field: The field with the words; `tokens` unless given.
            target_field: The field with the tags; `tags`, `ner_tags`, `pos_tags` or `labels` unless given.
        """
        self._words = input_field or WORDS
        self._tags = target_field or next((name for name in TAGS if name in first.fields), TAGS[0])

    def example(self, row: Row) -> Tagged:
        """Read a row.

        Raises:
            DataError: If a word or a tag is invalid, or their numbers differ.
        """
        words, tags = (items(row, name, present(row, name, self.read)) for name in (self._words, self._tags))
        if len(words) != len(tags):
            raise DataError(
                f"{row.place}: field {self._words!r} has {len(words)} words and field {self._tags!r} {len(tags)} tags; "
                "every word needs one tag"
            )
        return Tagged(
            tuple(text(row, f"word {number} of field {self._words!r}", word) for number, word in enumerate(words, 1)),
            tuple(label(row, f"tag {number} of field {self._tags!r}", tag) for number, tag in enumerate(tags, 1)),
            row.place,
            task_of(row),
        )
