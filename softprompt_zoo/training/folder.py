"""The folder of a run: whether a run may use it, its lock, its checkpoints."""

import contextlib
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import OutputError
from softprompt_zoo.files import peft_folder, prompt_folder
from softprompt_zoo.files.card import card_file
from softprompt_zoo.files.reading import read_json
from softprompt_zoo.files.writing import temporaries_of
from softprompt_zoo.training.record import RECORD_FILE, is_run

PICTURE_FILE = "loss_curve.png"
CONFIG_FILE = "config.yaml"
LOCK_FILE = ".training.lock"
"""Locked by the process that trains; the lock is released if that process is killed."""
CHECKPOINT_PREFIX = "checkpoint-"
STATE_FILE = "trainer_state.json"


def open_new(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a new run may not write to; nothing is changed.

    Args:
        folder: The output folder; it does not have to exist.
        overwrite: Whether an earlier run there may be removed.

    Raises:
        OutputError: If it contains anything but a run that may be removed.
    """
    _check_place(folder)
    if not folder.exists() or set(folder.iterdir()) <= {folder / LOCK_FILE, *temporaries_of(folder / RECORD_FILE)}:
        return  # new, empty, or left by a run that was killed before it wrote anything
    if not is_run(folder):
        raise OutputError(
            f"--output {folder} holds files that are not a training run's; nothing was changed; give a new folder"
        )
    if not overwrite:
        raise OutputError(
            f"--output {folder} holds a training run already; continue it with --resume, start over with --overwrite, "
            "or choose a new folder"
        )


def _check_place(folder: Path) -> None:
    """Refuse a file, and a location that is not writable."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--output {folder} is a file; expected a folder that is new, empty or an earlier run's")
    there = next(filter(Path.exists, (folder, *folder.absolute().parents)))
    if not there.is_dir():
        raise OutputError(f"--output {folder} cannot be written: {there} is a file; give another folder")
    if not os.access(there, os.W_OK):
        raise OutputError(f"--output {folder} cannot be written: {there} is not writable; give another folder")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder for the duration of the block.

    Args:
        folder: The folder; created if missing.

    Raises:
        OutputError: If another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"--output {folder} is in use by another training run; wait until it ends, stop it, or give another folder"
        ) from error
    try:
        for path in temporaries_of(folder / RECORD_FILE):
            path.unlink(missing_ok=True)  # left by a run that was killed
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove an open file
            (folder / LOCK_FILE).unlink()
        lock.release()


def clear(folder: Path) -> None:
    """Remove an earlier run, and nothing else in its folder.

    The index is removed first and the record last: if this is interrupted, no partial prompt can be loaded and the
    folder is still recognized as a run's.
    """
    (folder / prompt_folder.INDEX_FILE).unlink(missing_ok=True)
    peft_folder.remove(folder)
    card_file.remove(folder)
    for name in (prompt_folder.TENSOR_FILE, PICTURE_FILE, CONFIG_FILE):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in _checkpoints(folder):
        shutil.rmtree(checkpoint)
    (folder / RECORD_FILE).unlink(missing_ok=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint.

    Args:
        folder: The folder of the run.

    Returns:
        Its folder, or `None` if there is none.
    """
    whole = [checkpoint for checkpoint in _checkpoints(folder) if _is_whole(checkpoint)]
    return max(whole, key=checkpoint_step, default=None)


def remove_broken_checkpoints(folder: Path) -> None:
    """Remove incomplete checkpoints that a killed process left behind."""
    for checkpoint in _checkpoints(folder):
        if not _is_whole(checkpoint):
            shutil.rmtree(checkpoint)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the Trainer state in a checkpoint."""
    state: dict[str, Any] = read_json(checkpoint / STATE_FILE)
    return state


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.glob(f"{CHECKPOINT_PREFIX}*")
    return [path for path in found if path.is_dir() and path.name.removeprefix(CHECKPOINT_PREFIX).isdigit()]


def _random_states(checkpoint: Path) -> list[Path]:
    """Return the files with the random states, one per process; a missing path if there is none."""
    return [*checkpoint.glob("rng_state*.pth")] or [checkpoint / "rng_state.pth"]


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete; Trainer writes its files in place, the state last."""
    try:
        state = read_json(checkpoint / STATE_FILE)
        prompt_folder.read(checkpoint)
        # torch's files are zip archives, with their directory at the end.
        archives = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *_random_states(checkpoint)]
        return state["global_step"] == checkpoint_step(checkpoint) and all(map(zipfile.is_zipfile, archives))
    except (OSError, ValueError, LookupError, TypeError):
        return False
