"""The changes of a write at an address, rolled back if it fails.

An error does not reveal whether the request arrived: the object may be the old one, the new one, gone, or truncated.
So each object is examined before it is restored, and those that cannot be restored are reported.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from softprompt_zoo.bank.records import STAMP_SIZE, unseal

PAUSES = (0.1, 0.5, 2.0)
"""Seconds between a failure and the next attempt, for a store that recovers soon."""
NOTHING = "nothing was changed"


@dataclasses.dataclass(frozen=True)
class Change:
    """An object that was, or may have been, replaced, created or deleted."""

    what: str
    """The prompt, for messages."""
    path: str
    before: bytes | None
    """The previous content; `None` if there was none."""
    after: bytes | None
    """The new record's stamp; `None` if it was deleted."""

    def is_ours(self, now: bytes) -> bool:
        """Return whether an object is what this write put there or restored, or the beginning of it."""
        is_new = self.after is not None and (now[:STAMP_SIZE] == self.after or self.after.startswith(now))
        return is_new or (self.before is not None and self.before.startswith(now))

    def is_settled(self, now: bytes | None) -> bool:
        """Return whether nothing is left to restore: it is unchanged, or another writer has replaced it since."""
        return now == self.before or (now is not None and not self.is_ours(now))


class Changes:
    """The changes of one write.

    Args:
        fetch: Reads an object; `None` if there is none. It may raise anything.
        put: Writes an object. It may raise anything.
        remove: Deletes an object. It may raise anything.
    """

    def __init__(
        self,
        fetch: Callable[[str], bytes | None],
        put: Callable[[str, bytes], Any],
        remove: Callable[[str], Any],
    ) -> None:
        self._fetch = fetch
        self._put = put
        self._remove = remove
        self._changes: list[Change] = []
        self._is_reachable = True

    def note(self, what: str, path: str, before: bytes | None, record: bytes | None) -> None:
        """Record a change before it is made.

        Args:
            what: The prompt, for messages.
            path: Its object.
            before: The current content; `None` if there is none.
            record: The new content; `None` to delete it.
        """
        self._changes.append(Change(what, path, before, None if record is None else record[:STAMP_SIZE]))

    def forget_last(self) -> None:
        """Discard the last record: the store reported that nothing changed."""
        self._changes.pop()

    def undo(self) -> str:
        """Restore everything, in several attempts.

        Returns:
            The end of a message: that nothing was changed, or the state of every entry that was not restored.
        """
        waiting = collections.deque(reversed(self._changes))
        failures = 0  # in a row
        while waiting and failures <= len(PAUSES):
            try:
                self._put_back(waiting[0])
            except Exception:
                if failures < len(PAUSES):
                    time.sleep(PAUSES[failures])
                failures += 1
                waiting.rotate(-1)
            else:
                failures = 0
                waiting.popleft()
        return _describe([(self._state(change), change.what) for change in waiting])

    def _put_back(self, change: Change) -> None:
        if change.is_settled(self._fetch(change.path)):
            return
        if change.before is None:
            self._remove(change.path)
        else:
            self._put(change.path, change.before)
        if self._fetch(change.path) != change.before:
            raise OSError(f"{change.path} does not hold what was restored")

    def _state(self, change: Change) -> str:
        """Describe an entry that could not be restored; return an empty string if it is unchanged."""
        unknown = _UNKNOWN[change.before is None, change.after is None]
        if not self._is_reachable:
            return unknown
        try:
            now = self._fetch(change.path)
        except Exception:
            self._is_reachable = False  # do not try the others either: each may take a minute
            return unknown
        return _state_of(change, now)


def _state_of(change: Change, now: bytes | None) -> str:
    if change.is_settled(now):
        return ""
    if now is None:
        return "gone (add again)"
    is_whole = unseal(change.what, now) is not None
    return "the new one" if is_whole else "damaged (add again with overwrite=True, or delete)"


_UNKNOWN = {
    (False, False): "unknown, since it cannot be read (the old one, the new one, damaged or gone)",
    (True, False): "unknown, since it cannot be read (missing, the new one, or damaged)",
    (False, True): "unknown, since it cannot be read (still there, or gone)",
}
"""By whether the entry is new, and whether it was deleted."""


def _describe(states: Iterable[tuple[str, str]]) -> str:
    names = _by_state(states)
    if not names:
        return NOTHING
    listed = "; ".join(f"{', '.join(sorted(these))}: {state}" for state, these in names.items())
    return f"not everything could be restored: {listed}; everything else is unchanged"


def _by_state(states: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group the names of changed entries by their states."""
    names: dict[str, list[str]] = {}
    for state, what in states:
        if state:
            names.setdefault(state, []).append(repr(what) if what else "the bank's header")
    return names
