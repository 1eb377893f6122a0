"""Records in a folder, stored with LMDB: a memory-mapped file that many processes read while one writes.

A transaction is durable once it is acknowledged; a reader sees a single state of the bank throughout its transaction.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import lmdb

from softprompt_zoo.bank.environment import DATA_FILE, Environment, shared
from softprompt_zoo.bank.lock_file import LOCK_FILE
from softprompt_zoo.bank.names import is_name
from softprompt_zoo.bank.records import STAMP_SIZE
from softprompt_zoo.bank.stores import Records, closed
from softprompt_zoo.errors import BankError, CheckpointError, PromptExistsError, UnknownPromptError

HEADER_KEY = b"#header"
"""Not a valid prompt name; sorts before all that are."""
PAGE_OF_NAMES = 1024
"""Names read per transaction, so that a slow loop over them does not keep an old state of the file alive."""

Result = TypeVar("Result")


class FolderStore:
    """Records in a local folder."""

    def __init__(self, folder: str, max_bytes: int | None, is_new_allowed: bool) -> None:
        self.address = folder
        self._made = False
        try:
            path = os.path.realpath(folder)
            if not _is_there(os.path.join(path, DATA_FILE)):
                self._made = self._prepare(path, is_new_allowed)
        except (OSError, ValueError) as error:
            raise BankError(
                f"cannot open or create a bank in {folder}: {error}; check the path and its permissions"
            ) from error
        environment = shared(path)
        environment.close_if_replaced()
        if max_bytes is not None:
            environment.max_bytes = max_bytes
        self._environment: Environment | None = environment

    def _prepare(self, path: str, is_new_allowed: bool) -> bool:
        """Create the folder of a new bank, and return whether it was created."""
        if not is_new_allowed:
            raise BankError(
                f"there is no bank in {self.address}; create one with zoo.PromptBank({self.address!r}, model)"
            )
        is_there = os.path.exists(path)
        if is_there:
            self._check_is_free(path)
        os.makedirs(path, exist_ok=True)
        return not is_there

    def _check_is_free(self, path: str) -> None:
        """Refuse a file, or a folder with anything but the lock file of a bank whose creation was interrupted."""
        is_folder = os.path.isdir(path)
        if not is_folder or {*os.listdir(path)} - {LOCK_FILE}:
            what = "a folder with other files" if is_folder else "a file"
            raise BankError(f"{self.address} is {what}, not a bank; choose a new folder")

    @property
    def _file(self) -> Environment:
        if self._environment is None:
            raise closed(self.address)
        return self._environment

    def open_header(self, header: bytes | None) -> bytes | None:
        """See `Store.open_header`."""
        try:
            found = self._read_header()
            if found is None and header is not None:
                self._commit(lambda transaction: transaction.put(HEADER_KEY, header, overwrite=False))
                return self.open_header(None)  # another process may have been faster
        except BankError:
            self._take_back()
            raise
        return found

    def _read_header(self) -> bytes | None:
        """Return the header; `None` if the database is empty."""
        with self._reading() as transaction:
            found = transaction.get(HEADER_KEY)
            if found is None and transaction.stat()["entries"]:
                raise BankError(f"{self.address} is a database of another program, not a bank; choose a new folder")
            return None if found is None else bytes(found)

    def _take_back(self) -> None:
        """Remove the folder of a bank that could not be created."""
        if self._made:
            self._file.close()
            with contextlib.suppress(OSError):
                for name in os.listdir(self._file.folder):
                    os.unlink(os.path.join(self._file.folder, name))
                os.rmdir(self._file.folder)

    def read(
        self, names: Iterable[str], known: Mapping[str, bytes], decode: Callable[[str, memoryview], Result]
    ) -> dict[str, Result | None]:
        """See `Store.read`."""
        found: dict[str, Result | None] = {}
        with self._reading() as transaction:
            for name in names:
                data = transaction.get(name.encode())
                if data is not None:
                    is_known = name in known and data[:STAMP_SIZE] == known[name]
                    found[name] = None if is_known else decode(name, data)
        return found

    def peek(self, name: str, size: int) -> bytes | None:
        """See `Store.peek`."""
        with self._reading() as transaction:
            data = transaction.get(name.encode())
            return None if data is None else bytes(data[:size])

    def write(self, records: Records, overwrite: bool) -> None:
        """See `Store.write`; waits while another process or thread writes."""

        def put(transaction: Any) -> None:
            for name, record in records():
                if not transaction.put(name.encode(), record, overwrite=overwrite):
                    raise PromptExistsError(
                        f"{self.address} already has a prompt {name!r}; choose another name, or overwrite=True"
                    )

        self._commit(put)

    def delete(self, names: Sequence[str]) -> None:
        """See `Store.delete`."""

        def remove(transaction: Any) -> None:
            for name in names:
                if not transaction.delete(name.encode()):
                    raise UnknownPromptError(f"{self.address} has no prompt {name!r}; nothing was deleted")

        self._commit(remove)

    def _commit(self, action: Callable[[Any], Any]) -> None:
        """Act in a transaction, starting over with more address space until it fits."""
        file = self._file
        with file.writing:  # no other thread grows the file between attempts
            while True:
                try:
                    with self._writing() as transaction:
                        action(transaction)
                    break
                except lmdb.MapFullError:
                    file.grow()
        if not file.is_there():
            raise BankError(
                f"the bank in {self.address} was removed or replaced after it was opened, so nothing was written; open "
                "it again with zoo.PromptBank"
            )

    def names(self, prefix: str) -> Iterator[str]:
        """See `Store.names`."""
        first, start = prefix.encode(), prefix.encode() or b"-"
        while True:
            with self._reading() as transaction:
                page = _page_of_names(transaction.cursor(), start, first)
            yield from self._checked(page, start)
            if len(page) < PAGE_OF_NAMES:
                return
            start = page[-1] + b"\0"

    def _checked(self, page: list[bytes], start: bytes) -> list[str]:
        """Refuse names that are invalid or not sorted: a search would not find them."""
        names = [key.decode(errors="replace") for key in page]
        for before, key, name in zip([start, *page], page, names, strict=False):
            if not is_name(name) or key < before:
                raise CheckpointError(f"the index of the bank in {self.address} is damaged; restore it from a copy")
        return names

    def __len__(self) -> int:
        with self._reading() as transaction:
            return int(transaction.stat()["entries"]) - 1  # the header

    def close(self) -> None:
        """Release the file; other banks on it stay open."""
        self._environment = None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with self._file.begin(write=False) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise CheckpointError(
                f"the index of the bank in {self.address} is damaged ({error}); restore it from a copy"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        try:
            self._file.handle  # noqa: B018  only an open file shows whether it can be written
            if self._file.is_readonly:
                raise BankError(f"the bank in {self.address} cannot be written: no permission; nothing was changed")
            with self._file.begin(write=True) as transaction:
                yield transaction
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            # LMDB also reports a full disk as "Input/output error".
            free = os.statvfs(self._file.folder)
            raise BankError(
                f"the bank in {self.address} could not be written ({error}); the disk has "
                f"{free.f_bavail * free.f_frsize / 2**20:.0f} MB left; nothing was changed"
            ) from error


def _is_there(path: str) -> bool:
    """Return whether a file exists; raise `OSError` if that cannot be determined."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _page_of_names(cursor: Any, start: bytes, first: bytes) -> list[bytes]:
    """Read a page of names from `start` on, as long as they begin with `first`."""
    page: list[bytes] = []
    if cursor.set_range(start):
        for key in itertools.islice(cursor.iternext(values=False), PAGE_OF_NAMES):
            if key[: len(first)] != first:
                break
            page.append(bytes(key))
    return page
