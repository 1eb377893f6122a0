"""LMDB's handle on a bank's file: who may have a transaction open when, and what a fork does to it.

LMDB's rules: one handle per file in a process, one writer across all processes, and no open transaction in the process
while the map is resized or the process forks. Readers wait for nothing else.
"""

import collections
import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import lmdb

from softprompt_zoo.bank.lock_file import allocate_lock_file
from softprompt_zoo.bank.pages import find_damage
from softprompt_zoo.errors import BankError, CheckpointError

DATA_FILE = "data.mdb"
FIRST_SIZE = 2**30
"""Bytes of address space reserved for a bank's file beyond its content; doubled whenever it is full."""
MAX_READERS = 1024
"""Simultaneous readers across all processes."""


class Environment:
    """LMDB's handle on one file. A process may have only one, so all banks on a folder share it; see `shared`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.is_readonly = False
        self.max_bytes: int | None = None
        self._handle: Any = None
        self._file: tuple[int, int] | None = None
        self.renew_locks()

    def renew_locks(self) -> None:
        """Replace the locks: those copied by a fork may be held by threads that do not exist in the child."""
        self.writing = threading.RLock()
        """Held from before a write transaction until its end, while the map is resized, and during a fork."""
        self._changed = threading.Condition()
        self._transactions: collections.Counter[int] = collections.Counter()
        self._is_stopped = False

    @property
    def handle(self) -> Any:
        """LMDB's object; opened on first use."""
        if self._handle is None:
            with _OPENING:
                if self._handle is None:
                    self._handle = self._open()
        return self._handle

    def _open(self) -> Any:
        path = os.path.join(self.folder, DATA_FILE)
        try:
            allocate_lock_file(self.folder, MAX_READERS)
            handle, has_locks = self._open_as_permitted(self._first_map_size(path))
        except lmdb.InvalidError as error:
            raise CheckpointError(f"{path} is damaged, or not a bank ({error}); restore it from a copy") from error
        except (lmdb.Error, OSError) as error:
            raise BankError(
                f"cannot open the bank in {self.folder}: {error}; check the permissions and the free disk space"
            ) from error
        try:
            _check_pages(handle, path, has_locks)
        except CheckpointError:
            handle.close()
            raise
        if not self.is_readonly:
            handle.reader_check()  # frees the slots of readers that were killed
        self._file = _identity(path)
        return handle

    def _first_map_size(self, path: str) -> int:
        size = os.path.getsize(path) if os.path.exists(path) else 0
        wanted = size + FIRST_SIZE
        return wanted if self.max_bytes is None else min(wanted, max(self.max_bytes, size))

    def _open_as_permitted(self, map_size: int) -> tuple[Any, bool]:
        """Open LMDB for writing if permitted, else for reading, and return whether it has a reader table."""
        options: dict[str, Any] = {"map_size": map_size, "max_readers": MAX_READERS, "readahead": False}
        self.is_readonly = False
        try:
            return lmdb.open(self.folder, **options), True
        except lmdb.ReadonlyError:
            self.is_readonly = True
        try:
            return lmdb.open(self.folder, readonly=True, **options), True
        except lmdb.ReadonlyError:  # the reader table cannot be written either
            return lmdb.open(self.folder, readonly=True, lock=False, **options), False

    def is_there(self) -> bool:
        """Return whether the open file is still the one in the folder, neither removed nor replaced."""
        return self._file == _identity(os.path.join(self.folder, DATA_FILE))

    def close_if_replaced(self) -> None:
        """Close a file that is no longer in the folder, so that its replacement is opened."""
        if self._handle is not None and not self.is_there():
            self.close()

    def grow(self) -> None:
        """Double the file's address space once no transaction of the process is open.

        Raises:
            BankError: If it has already reached the size that the user allows.
        """
        size = self.handle.info()["map_size"]
        if self.max_bytes is not None and size >= self.max_bytes:
            raise BankError(
                f"the bank in {self.folder} is full: max_bytes is {self.max_bytes}; open it with a larger one, or "
                "delete prompts; nothing was written"
            )
        self._move(2 * size if self.max_bytes is None else min(2 * size, self.max_bytes))

    def _move(self, size: int) -> None:
        with self._alone():
            self.handle.set_mapsize(size)

    @contextlib.contextmanager
    def begin(self, write: bool) -> Iterator[Any]:
        """Open a transaction, committed at the end, or discarded if the block raises.

        Readers never wait for a writer, neither for one in this process nor for one that waits for another process.

        Args:
            write: Whether it writes. A thread may also read while it writes, and then sees the state before the write.

        Raises:
            BankError: If it would write while the thread already has a transaction open.
        """
        with self.writing if write else contextlib.nullcontext():
            while True:
                with self._counted(write):
                    try:
                        transaction = self.handle.begin(write=write, buffers=True)
                    except lmdb.MapResizedError:  # another process has grown the file beyond our map
                        if self._transactions[threading.get_ident()] > 1:
                            raise
                    else:
                        with transaction:
                            yield transaction
                        return
                self._move(0)

    @contextlib.contextmanager
    def _counted(self, write: bool) -> Iterator[None]:
        thread, changed, transactions = threading.get_ident(), self._changed, self._transactions
        with changed:
            if write and transactions[thread]:
                raise BankError(
                    f"the bank in {self.folder} was asked to write while the same thread is already writing to it; "
                    "make the prompts first, then write them"
                )
            # A thread with an open transaction continues: whoever stops the others waits for it.
            changed.wait_for(lambda: transactions[thread] or not self._is_stopped)
            transactions[thread] += 1
        try:
            yield
        finally:
            with changed:
                transactions[thread] -= 1
                if not transactions[thread]:
                    del transactions[thread]
                    changed.notify_all()

    def stop(self) -> None:
        """Wait until no other thread has an open transaction, and let none begin. The caller holds `writing`."""
        thread = threading.get_ident()
        with self._changed:
            self._is_stopped = True
            try:
                self._changed.wait_for(lambda: not self._transactions.keys() - {thread})
            except BaseException:
                self.go()
                raise

    def go(self) -> None:
        """Allow transactions to begin again."""
        with self._changed:
            self._is_stopped = False
            self._changed.notify_all()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self.writing:
            self.stop()
            try:
                yield
            finally:
                self.go()

    def close(self) -> None:
        """Close the handle once no transaction of the process is open."""
        with self._alone():
            if self._handle is not None:
                self._handle.close()
                self._handle = None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_pages(handle: Any, path: str, has_locks: bool) -> None:
    """Refuse a file with damage that LMDB would not detect but that would crash the process.

    Args:
        handle: LMDB's handle.
        path: The file.
        has_locks: Whether a transaction protects the pages it reads from being reused.
    """
    size, needed = os.path.getsize(path), (handle.info()["last_pgno"] + 1) * handle.stat()["psize"]
    if 0 < size < needed:
        raise CheckpointError(f"{path} is truncated: it has {size} of {needed} bytes; restore it from a copy")
    found = _damage(handle, path) if has_locks and size else ""
    if found:
        raise CheckpointError(f"{path} is damaged: {found}; restore it from a copy")


def _damage(handle: Any, path: str) -> str:
    try:
        with handle.begin() as transaction:
            return find_damage(path, transaction.id())
    except lmdb.Error as error:
        return str(error)


_OPENING = threading.Lock()
_ENVIRONMENTS: "weakref.WeakValueDictionary[str, Environment]" = weakref.WeakValueDictionary()
_HELD: list[Environment] = []


def shared(folder: str) -> Environment:
    """Return the process's handle on a folder's file, opened on first use.

    Args:
        folder: The folder, with symbolic links resolved.
    """
    with _OPENING:
        found = _ENVIRONMENTS.get(folder)
        if found is None:
            found = _ENVIRONMENTS[folder] = Environment(folder)
        return found


def _before_fork() -> None:
    _HELD[:] = list(_ENVIRONMENTS.values())
    for environment in _HELD:  # first stop writers, which may read another bank while they make their prompts
        environment.writing.acquire()
    for environment in _HELD:  # then let no other thread have a transaction open while the process forks
        environment.stop()
    _OPENING.acquire()


def _after_fork_in_parent() -> None:
    _OPENING.release()
    while _HELD:
        environment = _HELD.pop()
        environment.go()
        environment.writing.release()


def _after_fork_in_child() -> None:
    _OPENING.release()
    while _HELD:  # LMDB's handle belongs to the parent; the child opens its own when it reads
        environment = _HELD.pop()
        environment.renew_locks()
        environment.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
