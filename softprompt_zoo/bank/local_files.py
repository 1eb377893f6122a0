"""Files of a bank at `file://`: each is complete and on disk before it gets its name."""

import contextlib
import os
import posixpath
import time
import uuid

UNFINISHED_FOR = 600.0
"""Seconds after which a file without a name belongs to a killed writer; writing one takes less than a second."""


def put_file(path: str, data: bytes, mode: str, folder: str) -> None:
    """Write a file atomically.

    Args:
        path: Its name.
        data: Its content.
        mode: `"create"` or `"overwrite"`.
        folder: Where it is written first, on the same disk; created if missing.

    Raises:
        FileExistsError: If it already exists and `mode` is `"create"`; it is left unchanged.
        OSError: If it cannot be written; an existing file is left unchanged.
    """
    os.makedirs(folder, exist_ok=True)
    temporary = posixpath.join(folder, uuid.uuid4().hex)
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


def remove_unfinished(folder: str) -> None:
    """Remove the files that killed writers left behind.

    Args:
        folder: Where `put_file` writes first. Files that cannot be removed stay.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > UNFINISHED_FOR:
                    os.unlink(entry.path)


def _sync_folder(path: str) -> None:
    """Flush a file's name to disk too; systems that cannot open folders do so by themselves."""
    with contextlib.suppress(OSError):
        folder = os.open(posixpath.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _move_new(source: str, target: str) -> None:
    """Rename a file to a name that no file has; if several try at once, one succeeds."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.exists(target):
            raise FileExistsError(target) from None
        os.replace(source, target)
