"""Records at an fsspec address, an object for each prompt, for banks that machines share.

Objects are put whole. There is no transaction over several of them: where a write fails, those that it had written
are put back.
"""

import contextlib
import os
import posixpath
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import fsspec

from softprompt_zoo.banks.records import STAMP_SIZE
from softprompt_zoo.banks.stores import Records, closed
from softprompt_zoo.errors import BankError, PromptExistsError, UnknownPromptError

HEADER_FILE = "softprompt_bank"
FOLDER = "prompts"
ENDING = ".prompt"
FETCHED_AT_ONCE = 256
"""Objects in memory at the same time when many are read."""

Result = TypeVar("Result")


class ObjectStore:
    """Records at an fsspec address."""

    def __init__(self, address: str, storage_options: Mapping[str, Any]) -> None:
        self.address = address
        try:
            self._opened, root = fsspec.core.url_to_fs(address, **storage_options)
        except (ImportError, ValueError, OSError) as error:
            raise BankError(f"cannot open the bank at {address}: {error}") from error
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
        if found is not None or header is None:
            return found
        with self._writing(), contextlib.suppress(FileExistsError):  # another machine may have been faster
            self._make_folders()
            self._put(path, header, "create")
        return self._fetch([path], None)[0]

    def read(
        self, names: Iterable[str], known: Mapping[str, bytes], decode: Callable[[str, memoryview], Result]
    ) -> dict[str, Result | None]:
        """See `Store.read`; objects that were replaced meanwhile are the old or the new ones, each whole."""
        found: dict[str, Result | None] = {}
        waiting = []
        asked = list(dict.fromkeys(names))
        seen = [name for name in asked if name in known]
        for name, stamp in zip(seen, self._fetch([self._path(name) for name in seen], STAMP_SIZE), strict=True):
            if stamp == known[name]:
                found[name] = None
        waiting = [name for name in asked if name not in found]
        for first in range(0, len(waiting), FETCHED_AT_ONCE):
            part = waiting[first : first + FETCHED_AT_ONCE]
            for name, data in zip(part, self._fetch([self._path(name) for name in part], None), strict=True):
                if data is not None:
                    found[name] = decode(name, memoryview(data))
        return found

    def write(self, records: Records, overwrite: bool) -> None:
        """See `Store.write`; of two writers that overwrite one name the last one wins."""
        before: dict[str, bytes | None] = {}
        with self._writing():
            try:
                for name, record in records():
                    path = self._path(name)
                    old = self._fetch([path], None)[0] if overwrite else None
                    self._put(path, record, "overwrite" if overwrite else "create")
                    before.setdefault(path, old)
            except FileExistsError:
                self._restore(before)
                raise PromptExistsError(
                    f"{self.address} already has a prompt {name!r}; choose another name, or overwrite=True"
                ) from None
            except BaseException:
                self._restore(before)
                raise

    def delete(self, names: Sequence[str]) -> None:
        """See `Store.delete`."""
        before: dict[str, bytes | None] = {}
        with self._writing():
            paths = [self._path(name) for name in names]
            for name, data in zip(names, self._fetch(paths, None), strict=True):
                if data is None:
                    raise UnknownPromptError(f"{self.address} has no prompt {name!r}; nothing was deleted")
                before[self._path(name)] = data
            try:
                for path in paths:
                    self._files.rm_file(path)
            except BaseException:
                self._restore(before)
                raise

    def names(self, prefix: str) -> Iterator[str]:
        """See `Store.names`."""
        self._files.invalidate_cache()
        with self._reaching("read"):
            try:
                paths = self._files.find(posixpath.join(self._root, FOLDER))
            except FileNotFoundError:
                paths = []
        names = [path.rpartition("/")[2] for path in paths]
        yield from sorted(
            name.removesuffix(ENDING) for name in names if name.endswith(ENDING) and name.startswith(prefix)
        )

    def __len__(self) -> int:
        return sum(1 for _ in self.names(""))

    def close(self) -> None:
        """Let go of the file system, which fsspec keeps."""
        self._opened = None

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, FOLDER, name + ENDING)

    def _make_folders(self) -> None:
        if self._is_local:  # object stores have none
            self._files.makedirs(posixpath.join(self._root, FOLDER), exist_ok=True)

    def _put(self, path: str, data: bytes, mode: str) -> None:
        files = self._files
        if not self._is_local:
            files.pipe_file(path, data, mode=mode)
            return
        temporary = f"{path}.{uuid.uuid4().hex}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode == "create":
                _move_new(temporary, path)
            else:
                os.replace(temporary, path)
            _sync_folder(path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def _restore(self, before: Mapping[str, bytes | None]) -> None:
        for path, data in before.items():
            with contextlib.suppress(OSError):
                if data is None:
                    self._files.rm_file(path)
                else:
                    self._put(path, data, "overwrite")

    def _fetch(self, paths: list[str], end: int | None) -> list[bytes | None]:
        """Fetch objects, all at once where the file system can; `None` for those that are not there."""
        if not paths:
            return []
        start = None if end is None else 0
        with self._reaching("read"):
            found = self._files.cat_ranges(paths, [start] * len(paths), [end] * len(paths), on_error="return")
            for data in found:
                if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    raise data
        return [None if isinstance(data, Exception) else bytes(data) for data in found]

    @contextlib.contextmanager
    def _reaching(self, action: str, consequence: str = "") -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise BankError(f"the bank at {self.address} could not be {action}: {error}{consequence}") from error

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return self._reaching("written", "; nothing was changed")


def _sync_folder(path: str) -> None:
    """See that a file's name is on the disk, too; systems that open no folders do so by themselves."""
    with contextlib.suppress(OSError):
        folder = os.open(posixpath.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _move_new(source: str, target: str) -> None:
    """Give a file another name that no file has; of several that do it at once one can."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.exists(target):
            raise FileExistsError(target) from None
        os.replace(source, target)
