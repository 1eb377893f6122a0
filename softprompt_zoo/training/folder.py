"""The folder of a run: whose it is, its record `training.json`, its checkpoints."""

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.formats import adapter_folder, native
from softprompt_zoo.formats.files import read_json, write_json

RECORD_FILE = "training.json"
PICTURE_FILE = "loss_curve.png"
MADE_BY = "softprompt-zoo train"
RUNNING, FINISHED = "running", "finished"
CHECKPOINT_PREFIX = "checkpoint-"
STATE_FILE = "trainer_state.json"


class OutputError(CheckpointError):
    """The output folder cannot be used as asked."""


def open_new(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a new run may not write to, and empty one that it may.

    Args:
        folder: The output folder; it need not exist.
        overwrite: Whether an earlier run there may be removed.

    Raises:
        OutputError: If it holds anything but a run that may be removed.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--output {folder} is a file; expected a folder that is new, empty or an earlier run's")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise OutputError(f"--output {folder} cannot be written: {there} {why}; give another folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_run(folder):
        raise OutputError(
            f"--output {folder} holds files that are not a training run's; nothing was changed; give a new folder"
        )
    if not overwrite:
        raise OutputError(
            f"--output {folder} holds a training run already; go on with it with --resume, "
            "start anew with --overwrite, or give a new folder"
        )


def clear(folder: Path) -> None:
    """Remove an earlier run, and nothing else that lies in its folder.

    The index goes first and the record last: whenever this is cut off, no prompt loads by half and the
    folder is still known as a run's.
    """
    (folder / native.INDEX_FILE).unlink(missing_ok=True)
    adapter_folder.remove(folder)
    for name in (native.TENSOR_FILE, PICTURE_FILE):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in _checkpoints(folder):
        shutil.rmtree(checkpoint)
    (folder / RECORD_FILE).unlink(missing_ok=True)


def is_run(folder: Path) -> bool:
    """Say whether a folder is a training run's."""
    try:
        return bool(read_json(folder / RECORD_FILE).get("made_by") == MADE_BY)
    except CheckpointError:
        return False


def read_record(folder: Path) -> dict[str, Any]:
    """Read what a run wrote about itself.

    Args:
        folder: The folder of the run.

    Returns:
        The record.

    Raises:
        OutputError: If there is none.
    """
    if not is_run(folder):
        raise OutputError(f"{folder} holds no training run to resume; give the --output of one, or leave out --resume")
    return read_json(folder / RECORD_FILE)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD_FILE, {**record, "made_by": MADE_BY})


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint that was written to its end.

    Args:
        folder: The folder of the run.

    Returns:
        Its folder, or `None` if there is none.
    """
    whole = [checkpoint for checkpoint in _checkpoints(folder) if _is_whole(checkpoint)]
    return max(whole, key=checkpoint_step, default=None)


def remove_broken_checkpoints(folder: Path) -> None:
    """Remove what a killed process left of the checkpoint it was writing."""
    for checkpoint in _checkpoints(folder):
        if not _is_whole(checkpoint):
            shutil.rmtree(checkpoint)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the number of steps a checkpoint was written after."""
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


def read_history(checkpoint: Path) -> list[dict[str, float]]:
    """Return the losses that a checkpoint's Trainer has logged."""
    history: list[dict[str, float]] = read_json(checkpoint / STATE_FILE)["log_history"]
    return history


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.glob(f"{CHECKPOINT_PREFIX}*")
    return [path for path in found if path.is_dir() and path.name.removeprefix(CHECKPOINT_PREFIX).isdigit()]


def _is_whole(checkpoint: Path) -> bool:
    """Tell a checkpoint from a part of one; Trainer writes its files in place, the state last."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        native.read(checkpoint)
        # torch's files are zip archives, whose directory stands at the end.
        archives = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
        return state["global_step"] == checkpoint_step(checkpoint) and all(
            zipfile.is_zipfile(checkpoint / name) for name in archives
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False
