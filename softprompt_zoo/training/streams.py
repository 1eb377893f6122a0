"""Rows that are read during training, for data that do not fit into memory."""

import itertools
import random
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch.utils.data import IterableDataset

from softprompt_zoo.training.objectives.objective import Objective
from softprompt_zoo.training.objectives.rows import TokenRow

BUFFER = 10_000
"""Size of the shuffle buffer, in examples. Our choice: some megabytes of text."""
TOKENIZED_AT_ONCE = 64
"""Examples that are tokenized together, which is faster."""
SAMPLE = 1_000
"""Rows of a stream that are tried before training; the others are tokenized only when it is their turn."""


class Stream:
    """Examples that are read when they are needed, except those that were held out."""

    def __init__(self, reading: Iterable[Any], count: int, held_out: Collection[int] = ()) -> None:
        self._reading, self._held_out = reading, frozenset(held_out)
        self._count = count - len(self._held_out)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return (example for index, example in enumerate(self._reading) if index not in self._held_out)


class StreamedRows(IterableDataset[TokenRow]):
    """The rows of a stream, repeated without end, tokenized when needed; rows that are too long are left out.

    They are shuffled within a buffer. The order depends only on the seed, so a resumed run continues with the rows that
    come next. Trainer cannot tell where a stream starts over, so it gets one that does not end.
    """

    def __init__(
        self, objective: Objective[Any, Any], examples: Stream, max_length: int, seed: int, buffer: int = BUFFER
    ) -> None:
        self.objective, self.examples, self.max_length = objective, examples, max_length
        self.seed, self.buffer = seed, buffer

    def __iter__(self) -> Iterator[TokenRow]:
        return itertools.chain.from_iterable(map(self.epoch, itertools.count()))

    def epoch(self, number: int) -> Iterator[TokenRow]:
        """Iterate over all rows once, in the order of an epoch."""
        draw = random.Random(f"{self.seed} {number}")
        return self._tokenized(shuffled(iter(self.examples), self.buffer, draw))

    def sample(self) -> list[TokenRow]:
        """Return the first rows, in file order, to try a model on.

        Raises:
            ValueError: If none of them is short enough.
        """
        first = [*itertools.islice(self.examples, SAMPLE)]
        rows = [*self._tokenized(iter(first))]
        if not rows:
            raise ValueError(
                f"none of the first {len(first)} training rows fits into {self.max_length} tokens; raise --max-length, "
                "or choose a model that takes longer texts"
            )
        return rows

    def _tokenized(self, examples: Iterator[Any]) -> Iterator[TokenRow]:
        while chunk := [*itertools.islice(examples, TOKENIZED_AT_ONCE)]:
            yield from (row for row in self.objective.rows(chunk) if len(row) <= self.max_length)


def shuffled(items: Iterator[Any], size: int, draw: random.Random) -> Iterator[Any]:
    """Shuffle a stream: each new item replaces a randomly drawn one in the buffer.

    Args:
        items: The stream.
        size: Maximum number of items in the buffer.
        draw: The random number generator.

    Returns:
        The items in random order.
    """
    waiting = [*itertools.islice(items, size)]
    for item in items:
        place = draw.randrange(size)
        yield waiting[place]
        waiting[place] = item
    draw.shuffle(waiting)
    yield from waiting
