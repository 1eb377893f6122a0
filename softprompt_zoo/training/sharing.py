"""Share a run's folder: the prompt, its card, and a record without the user's paths."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files import peft_folder, prompt_folder
from softprompt_zoo.files.formats import format_of
from softprompt_zoo.files.hub.upload import Push, push_folder
from softprompt_zoo.files.writing import json_bytes
from softprompt_zoo.training.card import without_folders
from softprompt_zoo.training.record import RECORD_FILE, is_run, read_record

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def push_prompt(folder: Path, push: Push) -> "CommitInfo":
    """Push a saved prompt unchanged; for a run, also its record, which has the template of its texts.

    Args:
        folder: A folder that `train` or `save_pretrained` wrote, or a PEFT prompt adapter.
        push: Destination and options of the upload.

    Returns:
        huggingface_hub's description of the commit.

    Raises:
        CheckpointError: If the folder holds no such prompt.
        HubError: If it cannot be pushed.
    """
    if not prompt_folder.is_there(folder) and not peft_folder.is_there(folder):
        raise CheckpointError(
            f"{folder} has neither {prompt_folder.INDEX_FILE} nor {peft_folder.CONFIG_FILE}; expected what train or "
            "save_pretrained wrote, or a PEFT prompt adapter"
        )
    other = format_of(folder).other_content(folder)
    if other is not None:
        raise CheckpointError(f"{folder} holds {other}; push it with the library that wrote it")
    more = {RECORD_FILE: json_bytes(public_record(read_record(folder)))} if is_run(folder) else {}
    return push_folder(folder, push, more)


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with only the names of files and folders, without their locations.

    Args:
        record: The run's record. Not changed.
    """
    settings = {name: _name(value) for name, value in record["settings"].items()}
    settings["options"] = {name: _name(value) for name, value in settings["options"].items()}
    data = {name: {**source, "path": _name(source["path"])} for name, source in record["data"].items()}
    return {**record, "command": without_folders(record["command"]), "settings": settings, "data": data}


def _name(value: Any) -> Any:
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value
