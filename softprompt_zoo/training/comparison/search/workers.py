"""The processes of a search: each holds a lock of its own, by which the others see whether it is still there."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class Workers:
    """The processes that search into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def join(self) -> Iterator[int]:
        """Be one of them within the block; give its number, the smallest that is free."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            lock = FileLock(self._path(number))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            with lock:
                lock.release()  # of the two acquisitions
                yield number
            return

    def is_there(self, number: int) -> bool:
        """Return whether another process with a number is still there."""
        if not self._path(number).exists():
            return False
        try:
            with FileLock(self._path(number), timeout=0):
                return False
        except Timeout:
            return True

    def any_there(self) -> bool:
        """Return whether any process searches into the folder."""
        return any(self.is_there(number) for number in range(len(list(self.folder.glob("worker-*.lock")))))

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Be the only process that does something within the block; give whether it is."""
        try:
            with FileLock(self.folder / f"{name}.lock", timeout=0):
                yield True
        except Timeout:
            yield False

    def _path(self, number: int) -> Path:
        return self.folder / f"worker-{number}.lock"
