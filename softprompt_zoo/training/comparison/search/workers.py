"""The processes of a search: each holds a lock, which shows the others that it is still running."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class Workers:
    """The processes that search in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def join(self) -> Iterator[int]:
        """Register this process within the block; yield its number, the smallest free one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            lock = FileLock(self._path(number))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            with lock:
                lock.release()  # it was acquired twice
                yield number
            return

    def is_there(self, number: int) -> bool:
        """Return whether another process with this number is still running."""
        if not self._path(number).exists():
            return False
        try:
            with FileLock(self._path(number), timeout=0):
                return False
        except Timeout:
            return True

    def any_there(self) -> bool:
        """Return whether any process is searching in the folder."""
        return any(self.is_there(number) for number in range(len(list(self.folder.glob("worker-*.lock")))))

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claim something for this process within the block; yield whether no other process has claimed it."""
        try:
            with FileLock(self.folder / f"{name}.lock", timeout=0):
                yield True
        except Timeout:
            yield False

    def _path(self, number: int) -> Path:
        return self.folder / f"worker-{number}.lock"
