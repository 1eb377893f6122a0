"""Prompts that are ready on a worker's device."""

import collections
import dataclasses
import threading

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Table:
    """A prompt's keys and values for the layers and heads of one worker."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Key and value `(tokens, kv_heads, head_dim)` of each layer."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, in bytes."""
        return sum(key.nbytes + value.nbytes for key, value in self.layers)


class TableCache:
    """The tables that were used last, up to a bound.

    Args:
        max_bytes: The bound; one table that is larger is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tables: collections.OrderedDict[tuple[str, str], Table] = collections.OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, name: str, stamp: str) -> Table | None:
        """Return a prompt's table, as it is with that stamp; `None` if it is not here."""
        with self._lock:
            table = self._tables.get((name, stamp))
            if table is not None:
                self._tables.move_to_end((name, stamp))
            return table

    def put(self, name: str, stamp: str, table: Table) -> None:
        """Keep a table, and drop those that were used longest ago for it."""
        if table.num_bytes > self._max_bytes:
            return
        with self._lock:
            before = self._tables.pop((name, stamp), None)
            self._num_bytes += table.num_bytes - (0 if before is None else before.num_bytes)
            self._tables[name, stamp] = table
            while self._num_bytes > self._max_bytes:
                _, dropped = self._tables.popitem(last=False)
                self._num_bytes -= dropped.num_bytes
