"""Prompts that are cached on a worker's device."""

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
        """Memory that it uses, in bytes."""
        return sum(key.nbytes + value.nbytes for key, value in self.layers)


class TableCache:
    """The most recently used tables, up to a maximum size.

    Args:
        max_bytes: Maximum size in bytes; a single table that is larger is not cached.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tables: collections.OrderedDict[tuple[str, str], Table] = collections.OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, name: str, stamp: str) -> Table | None:
        """Return the table of a prompt with that stamp; `None` if it is not cached."""
        with self._lock:
            table = self._tables.get((name, stamp))
            if table is not None:
                self._tables.move_to_end((name, stamp))
            return table

    def put(self, name: str, stamp: str, table: Table) -> None:
        """Cache a table, and drop the least recently used ones to make room."""
        if table.num_bytes > self._max_bytes:
            return
        with self._lock:
            before = self._tables.pop((name, stamp), None)
            self._num_bytes += table.num_bytes - (0 if before is None else before.num_bytes)
            self._tables[name, stamp] = table
            while self._num_bytes > self._max_bytes:
                _, dropped = self._tables.popitem(last=False)
                self._num_bytes -= dropped.num_bytes
