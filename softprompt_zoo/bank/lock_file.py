"""LMDB's reader table, a memory-mapped file.

Writing to a mapped file when the disk is full crashes the process, so its space is allocated before LMDB maps it.
"""

import errno
import os

LOCK_FILE = "lock.mdb"
_NOT_POSSIBLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Errors of file systems that cannot allocate space in advance."""


def allocate_lock_file(folder: str, max_readers: int) -> None:
    """Allocate disk space for the reader table.

    Must not be called while the process has the bank open: closing the file would release LMDB's locks on it.

    Args:
        folder: Where it is, or will be.
        max_readers: Slots of a new table; an existing one keeps its size, since other processes may have it
            mapped.

    Raises:
        OSError: If the disk is full. Without write permission nothing is done; LMDB detects that itself.
    """
    file = _open(os.path.join(folder, LOCK_FILE))
    if file is None:
        return
    try:
        _allocate(file, max_readers)
    except OSError as error:
        if error.errno not in _NOT_POSSIBLE:
            raise
    finally:
        os.close(file)


def _open(path: str) -> int | None:
    """Open the file, creating it if missing; `None` if that is not permitted."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return None


def _allocate(file: int, max_readers: int) -> None:
    found = os.fstat(file)
    size = found.st_size or 64 * max_readers + 128  # as LMDB creates it; it recreates one of another size
    if found.st_blocks * 512 < size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
