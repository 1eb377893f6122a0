"""Files of a bank at `file://`: each is whole, and on the disk, before it has its name."""

import contextlib
import os
import posixpath
import time
import uuid

UNFINISHED_FOR = 600.0
"""Seconds after which a file without a name is a killed writer's; writing one takes less than one of them."""


def put_file(path: str, data: bytes, mode: str, folder: str) -> None:
    """Write a file.

    Args:
        path: Its name.
        data: Its content.
        mode: `"create"` or `"overwrite"`.
        folder: Where it is written first, on the same disk; made if missing.

    Raises:
        FileExistsError: If there is one of that name and `mode` is `"create"`; it stays as it is.
        OSError: If it cannot be written; what was there stays.
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
    """Remove the files that killed writers have left.

    Args:
        folder: Where `put_file` writes first. What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > UNFINISHED_FOR:
                    os.unlink(entry.path)


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
