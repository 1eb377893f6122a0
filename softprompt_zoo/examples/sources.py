"""Where rows come from: a file, a folder written by `save_to_disk`, or a name on the Hub."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.row import Row
from softprompt_zoo.examples.rows import read_rows
from softprompt_zoo.examples.tables import is_saved, read_hub, read_saved

_CHUNK = 2**20


@dataclass(frozen=True)
class Source:
    """A named source of rows, which can be read repeatedly."""

    name: str
    """A path, or a name on the Hub."""
    split: str | None = None
    """The split, if a data set has several."""
    subset: str | None = None
    """The subset, if a data set on the Hub has several."""
    streaming: bool = False
    """Whether a data set on the Hub is read over the network rather than downloaded first."""

    @property
    def is_on_the_hub(self) -> bool:
        """Whether the name is looked up on the Hub: it is not an existing path, and does not look like one."""
        return not os.path.exists(self.name) and may_be_a_hub_name(self.name)

    def rows(self) -> Iterator[Row]:
        """Read the rows, one at a time.

        Raises:
            DataError: If the source or a row cannot be read, or there is no such split or subset.
            MissingPackageError: If a package needed to read it is not installed.
        """
        if self.is_on_the_hub:
            return read_hub(self.name, self.subset, self.split, streaming=self.streaming)
        _check_unused(self.name, "--subset", self.subset)
        if is_saved(Path(self.name)):
            return read_saved(Path(self.name), self.split)
        _check_unused(self.name, "--split", self.split)
        return read_rows(Path(self.name))

    def checksum(self) -> str:
        """Return the SHA-256 of the files, or of the rows for a data set on the Hub."""
        digest = hashlib.sha256()
        if self.is_on_the_hub:
            for row in self.rows():
                digest.update(repr(sorted(row.fields.items())).encode("utf-8", "surrogatepass"))
            return digest.hexdigest()
        path = Path(self.name)
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as content:
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()


def may_be_a_hub_name(name: str) -> bool:
    """Return whether a name is possible for a data set on the Hub: `set` or `user/set`, without a file suffix."""
    looks_like_a_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    return bool(name) and not looks_like_a_path and not Path(name).suffix


def _check_unused(name: str, flag: str, value: str | None) -> None:
    if value is not None:
        raise DataError(f"{name}: is a file or folder without splits or subsets, but {flag} is {value!r}; leave it out")
