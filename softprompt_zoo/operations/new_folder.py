"""A folder that is written completely or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def check_free(directory: Path) -> None:
    """Refuse a folder that is not empty or cannot be replaced.

    Args:
        directory: The folder to write.

    Raises:
        ValueError: If it cannot be written.
    """
    if not directory.exists():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise ValueError(f"{directory} exists and is not an empty folder; give a new one")
    if directory.is_mount() or directory.samefile(os.curdir):
        raise ValueError(
            f"{str(directory)!r} is the current folder or a mount point and cannot be replaced; give a folder inside it"
        )


@contextlib.contextmanager
def moved_into_place(directory: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `directory` in one step, or is removed."""
    directory = directory.resolve()  # a link stays a link
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    try:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
