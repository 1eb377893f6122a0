"""Which prompts each row sees: what `sites.prompts_argument` makes from `prompts=`.

A *combination* is the ordered tuple of prompts that one row sees; rows with the same combination share its tokens, so
nothing is computed twice. Within a combination, the tokens of each prompt follow those of the previous one.
"""

import dataclasses
import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from softprompt_zoo.shapes import Int

Entry = TypeVar("Entry", bound=Hashable)


class Part(NamedTuple):
    """The part of one prompt that a row sees."""

    name: str
    """The prompt's name."""
    task_or_row: int | None = None
    """The task, or the row of the text, whose tokens it sees; `None` if they are the same for all, or not separated
    yet (`sites.separate_parts`)."""


Combination = tuple[Part, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Which rows see which combination."""

    combinations: tuple[Combination, ...]
    """The distinct combinations of the batch."""
    rows: Int[Tensor, " rows"] | None
    """Index into `combinations`; `None` if all rows share the only one."""
    is_in_order: bool = False
    """Whether each row sees the combination with its own index, so that no lookup is needed."""

    def check_rows(self, rows: int) -> None:
        """Refuse a batch with a different number of rows."""
        if self.rows is not None:
            check_rows(self.rows.shape[0], rows)

    def repeated(self, rows: int) -> "Selection":
        """Repeat each row in place to match a batch expanded by beams or several return sequences.

        Raises:
            ValueError: If the batch is not a multiple of the rows.
        """
        if self.rows is None:
            return self
        given = self.rows.shape[0]
        if not given or rows % given:
            check_rows(given, rows)
        return Selection(self.combinations, self.rows.repeat_interleave(rows // given))

    @property
    def parts(self) -> list[Part]:
        """Every part of the call, once."""
        return list(dict.fromkeys(itertools.chain.from_iterable(self.combinations)))

    @property
    def names(self) -> list[str]:
        """Every prompt of the call, once."""
        return list(dict.fromkeys([part.name for part in self.parts]))


def indexed(entries: Sequence[Entry]) -> tuple[list[Entry], list[int]]:
    """Return each distinct entry once, in order, and for every entry the index of its own."""
    places: dict[Entry, int] = {}
    rows = [places.setdefault(entry, len(places)) for entry in entries]
    return list(places), rows


def times_repeated(begun: int, rows: int) -> int:
    """Return how often beams or several return sequences repeat each row of a text in place.

    Args:
        begun: Rows that the text started with.
        rows: Rows of the batch.

    Raises:
        ValueError: If the batch is not a multiple of the text's rows.
    """
    if not begun or rows % begun:
        raise ValueError(
            f"the text started with {begun} rows but continues with {rows}; expected the same number, or a multiple"
        )
    return rows // begun


def check_rows(entries: int, rows: int) -> None:
    """Refuse a `prompts` argument whose number of rows differs from the batch."""
    if entries != rows:
        raise ValueError(
            f"prompts has {entries} entries for a batch of {rows} rows; give one entry per row: a prompt's name, "
            "a list of names, or None"
        )
