"""LMDB's table of readers, a file that is mapped into memory.

Writing to a mapped file for which the disk has no room ends the process. So it gets its room before LMDB maps it.
"""

import errno
import os

LOCK_FILE = "lock.mdb"
_NOT_POSSIBLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What file systems say that give no room ahead."""


def allocate_lock_file(folder: str, max_readers: int) -> None:
    """Give the table of readers its room on the disk.

    Not to be called while the process has the bank open: closing the file would give up LMDB's locks on it.

    Args:
        folder: Where it is, or will be.
        max_readers: Places that it has when it is made; one that is there keeps its size, for others may have it
            mapped.

    Raises:
        OSError: If there is no room. Without permission to write it nothing is done; LMDB finds that out.
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
    """Open the file, made if missing; `None` if that is not permitted."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return None


def _allocate(file: int, max_readers: int) -> None:
    found = os.fstat(file)
    size = found.st_size or 64 * max_readers + 128  # as LMDB makes it; of another size it makes it anew
    if found.st_blocks * 512 < size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
