"""Records at an fsspec address, one object per prompt, for banks shared between machines.

Each object is written as a whole. There are no transactions across objects: if a write fails, those already written
are rolled back.
"""

import contextlib
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import fsspec

from softprompt_zoo.bank.changes import NOTHING, Changes
from softprompt_zoo.bank.local_files import put_file, remove_unfinished
from softprompt_zoo.bank.names import is_name
from softprompt_zoo.bank.records import STAMP_SIZE
from softprompt_zoo.bank.stores import Records, closed
from softprompt_zoo.errors import BankError, PromptExistsError, UnknownPromptError, ZooError, described

HEADER_FILE = "softprompt_bank"
FOLDER = "prompts"
UNFINISHED = "unfinished"
"""Folder in which local files are written before they get their names."""
ENDING = ".prompt"
FETCHED_AT_ONCE = 256
"""Maximum number of objects in memory at once when many are read."""

Result = TypeVar("Result")


class ObjectStore:
    """Records at an fsspec address."""

    def __init__(self, address: str, storage_options: Mapping[str, Any]) -> None:
        self.address = address
        scheme, _, place = address.partition("://")
        if not scheme or not place.strip("/"):
            raise BankError(f"the address {address!r} names no location; expected one such as s3://bucket/bank")
        try:
            self._opened, root = fsspec.core.url_to_fs(address, **storage_options)
        except Exception as error:  # every file system has its own errors
            raise BankError(
                f"cannot open the bank at {address}: {described(error)}; check the address and storage_options"
            ) from error
        self._root = root.rstrip("/")
        protocols = self._files.protocol
        self._is_local = "file" in ((protocols,) if isinstance(protocols, str) else protocols)

    @property
    def _files(self) -> Any:
        if self._opened is None:
            raise closed(self.address)
        return self._opened

    def open_header(self, header: bytes | None) -> bytes | None:
        """See `Store.open_header`."""
        path = posixpath.join(self._root, HEADER_FILE)
        found = self._fetch([path], None)[0]
        if self._is_local:
            remove_unfinished(posixpath.join(self._root, UNFINISHED))
        if found is not None or header is None:
            return found
        self._refuse_other_files()
        with self._undoing() as changes, contextlib.suppress(FileExistsError):  # another machine may have been first
            self._make_folders()
            self._change(changes, "", path, None, header)
        return self._fetch([path], None)[0]

    def _refuse_other_files(self) -> None:
        paths = self._listed(lambda files: files.ls(self._root, detail=False))
        names = {path.rstrip("/").rpartition("/")[2] for path in paths if path.strip("/") != self._root.strip("/")}
        others = sorted(name for name in names - {FOLDER, UNFINISHED} if not name.startswith(HEADER_FILE))
        if others:
            raise BankError(f"{self.address} holds other files ({others[0]!r}), not a bank; choose a new location")

    def read(
        self, names: Iterable[str], known: Mapping[str, bytes], decode: Callable[[str, memoryview], Result]
    ) -> dict[str, Result | None]:
        """See `Store.read`; an object replaced meanwhile is either the old or the new one, complete."""
        asked = list(dict.fromkeys(names))
        found: dict[str, Result | None] = dict.fromkeys(self._unchanged(asked, known))
        for name, data in self._whole([name for name in asked if name not in found]):
            found[name] = decode(name, memoryview(data))
        return found

    def _unchanged(self, names: list[str], known: Mapping[str, bytes]) -> list[str]:
        """Return the names whose stamp is still the known one."""
        seen = [name for name in names if name in known]
        return [name for name, stamp in self._contents(seen, STAMP_SIZE) if stamp == known[name]]

    def _whole(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        """Fetch the objects that exist, `FETCHED_AT_ONCE` at a time."""
        for first in range(0, len(names), FETCHED_AT_ONCE):
            for name, data in self._contents(names[first : first + FETCHED_AT_ONCE], None):
                if data is not None:
                    yield name, data

    def _contents(self, names: list[str], size: int | None) -> Iterator[tuple[str, bytes | None]]:
        return zip(names, self._fetch([self._path(name) for name in names], size), strict=True)

    def peek(self, name: str, size: int) -> bytes | None:
        """See `Store.peek`."""
        return self._fetch([self._path(name)], size)[0]

    def write(self, records: Records, overwrite: bool) -> None:
        """See `Store.write`; if two writers overwrite the same name, the last one wins."""
        with self._undoing() as changes:
            for name, record in records():
                path = self._path(name)
                old = self._fetch([path], None)[0] if overwrite else None
                try:
                    self._change(changes, name, path, old, record, "overwrite" if overwrite else "create")
                except FileExistsError:
                    raise PromptExistsError(
                        f"{self.address} already has a prompt {name!r}; choose another name, or overwrite=True"
                    ) from None

    def delete(self, names: Sequence[str]) -> None:
        """See `Store.delete`."""
        with self._undoing() as changes:
            records = self._fetch([self._path(name) for name in names], None)
            for name, data in zip(names, records, strict=True):
                if data is None:
                    raise UnknownPromptError(f"{self.address} has no prompt {name!r}; nothing was deleted")
            for name, data in zip(names, records, strict=True):
                self._change(changes, name, self._path(name), data, None)

    def _change(
        self, changes: Changes, what: str, path: str, old: bytes | None, new: bytes | None, mode: str = "create"
    ) -> None:
        """Write or delete an object; a `FileExistsError` means that nothing was changed."""
        changes.note(what, path, old, new)
        with self._reaching("written"):
            if new is None:
                with contextlib.suppress(FileNotFoundError):  # another writer has deleted it
                    self._files.rm_file(path)
                return
            try:
                self._put(path, new, mode)
            except FileExistsError:
                changes.forget_last()
                raise

    @contextlib.contextmanager
    def _undoing(self) -> Iterator[Changes]:
        """Roll back the changes if the block raises, and add the resulting state to the error."""
        remove = self._files.rm_file  # raises if the bank is closed
        changes = Changes(
            lambda path: self._fetch([path], None)[0], lambda path, data: self._put(path, data, "overwrite"), remove
        )
        try:
            yield changes
        except BankError as error:
            raise BankError(f"{error}; {changes.undo()}") from error.__cause__
        except BaseException as error:
            found = changes.undo()
            if found != NOTHING:
                error.add_note(f"the bank at {self.address}: {found}")
            raise

    def names(self, prefix: str) -> Iterator[str]:
        """See `Store.names`; foreign objects are skipped."""
        paths = self._listed(lambda files: files.find(posixpath.join(self._root, FOLDER)))
        names = filter(None, map(self._name_at, paths))
        yield from sorted(name for name in names if name.startswith(prefix))

    def _listed(self, look: Callable[[Any], list[str]]) -> list[str]:
        """List paths, bypassing fsspec's cache; none if there is no such folder."""
        with self._reaching("read"):
            try:
                self._files.invalidate_cache()
                return look(self._files)
            except FileNotFoundError:
                return []

    def _name_at(self, path: str) -> str | None:
        """Return the name of the prompt at a path; `None` if it is not one of ours."""
        name = path.rpartition("/")[2].removesuffix(ENDING)
        return name if is_name(name) and path.strip("/") == self._path(name).strip("/") else None

    def __len__(self) -> int:
        return sum(1 for _ in self.names(""))

    def close(self) -> None:
        """Release the file system, which fsspec keeps."""
        self._opened = None

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, FOLDER, name + ENDING)

    def _make_folders(self) -> None:
        if self._is_local:  # object stores have none
            self._files.makedirs(posixpath.join(self._root, FOLDER), exist_ok=True)

    def _put(self, path: str, data: bytes, mode: str) -> None:
        if self._is_local:
            put_file(path, data, mode, posixpath.join(self._root, UNFINISHED))
        else:
            self._files.pipe_file(path, data, mode=mode)

    def _fetch(self, paths: list[str], end: int | None) -> list[bytes | None]:
        """Fetch objects, concurrently if the file system can; `None` for those that do not exist."""
        if not paths:
            return []
        start = None if end is None else 0
        with self._reaching("read"):
            found = self._files.cat_ranges(paths, [start] * len(paths), [end] * len(paths), on_error="return")
            _raise_failures(found)
        return [None if isinstance(data, Exception) else bytes(data) for data in found]

    @contextlib.contextmanager
    def _reaching(self, action: str) -> Iterator[None]:
        """Translate the errors of a file system: each has its own."""
        try:
            yield
        except (ZooError, FileExistsError):
            raise
        except Exception as error:
            raise BankError(
                f"the bank at {self.address} could not be {action}: {described(error)}; check the address, the "
                "permissions and the free space there, then try again"
            ) from error


def _raise_failures(fetched: Iterable[Any]) -> None:
    """Raise the error that kept an object from being fetched, unless it does not exist."""
    for data in fetched:
        if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
            raise data
