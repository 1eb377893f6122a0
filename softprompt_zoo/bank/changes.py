"""What a write has changed at an address, to be put back when it fails.

An error does not say whether a request has arrived: an object may be the old one, the new one, gone, or cut off. So it
is looked at before anything is put back, and what cannot be put back is named.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from softprompt_zoo.bank.records import STAMP_SIZE, unseal

PAUSES = (0.1, 0.5, 2.0)
"""Seconds between one failure and the next try, for a store that is back soon."""
NOTHING = "nothing was changed"


@dataclasses.dataclass(frozen=True)
class Change:
    """An object that was, or may have been, replaced, made or deleted."""

    what: str
    """The prompt, for messages."""
    path: str
    before: bytes | None
    """What was there; `None` if nothing was."""
    after: bytes | None
    """The new record's stamp; `None` where it was deleted."""

    def is_ours(self, now: bytes) -> bool:
        """Return whether an object is what was put there, or put back, or the beginning of it."""
        is_new = self.after is not None and (now[:STAMP_SIZE] == self.after or self.after.startswith(now))
        return is_new or (self.before is not None and self.before.startswith(now))

    def is_settled(self, now: bytes | None) -> bool:
        """Return whether nothing is left to put back: it is as it was, or another writer was here since."""
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
        """Note a change, before it is made.

        Args:
            what: The prompt, for messages.
            path: Its object.
            before: What is there; `None` if nothing is.
            record: What will be there; `None` if it is deleted.
        """
        self._changes.append(Change(what, path, before, None if record is None else record[:STAMP_SIZE]))

    def forget_last(self) -> None:
        """Take back the last note: the store said that it changed nothing."""
        self._changes.pop()

    def undo(self) -> str:
        """Put everything back, in several tries.

        Returns:
            For the end of a message: that nothing was changed, or the state of every entry that is not as it was.
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
            raise OSError(f"{change.path} is not what was put back")

    def _state(self, change: Change) -> str:
        """Describe an entry that could not be put back; with nothing if it is as it was."""
        unknown = _UNKNOWN[change.before is None, change.after is None]
        if not self._is_reachable:
            return unknown
        try:
            now = self._fetch(change.path)
        except Exception:
            self._is_reachable = False  # the others are not asked either, each of which may take a minute
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
    (False, False): "not known, for it cannot be read (the old one, the new one, damaged or gone)",
    (True, False): "not known, for it cannot be read (not there, the new one, or damaged)",
    (False, True): "not known, for it cannot be read (there, or gone)",
}
"""By whether there was none before, and whether it was deleted."""


def _describe(states: Iterable[tuple[str, str]]) -> str:
    names = _by_state(states)
    if not names:
        return NOTHING
    listed = "; ".join(f"{', '.join(sorted(these))}: {state}" for state, these in names.items())
    return f"not everything could be put back: {listed}; all else is as it was"


def _by_state(states: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group the names of entries that are not as they were by their states."""
    names: dict[str, list[str]] = {}
    for state, what in states:
        if state:
            names.setdefault(state, []).append(repr(what) if what else "the bank's header")
    return names
