"""A folder's description of its prompts, which needs no model, tensors or methods."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files import peft_folder, prompt_folder
from softprompt_zoo.files.peft_fields import NOT_OPTIONS


@dataclasses.dataclass(frozen=True)
class SavedPrompt:
    """One prompt of a folder."""

    method: str | None
    """Its method's canonical name, or PEFT's name of its type; `None` if the folder holds an export for engines."""
    num_virtual_tokens: int | None
    """Virtual tokens; `None` if the folder does not say."""
    options: Mapping[str, Any]
    """Options that the user chose, by the method's names or PEFT's."""


@dataclasses.dataclass(frozen=True)
class SavedConfig:
    """A folder's description of its prompts."""

    base_model: str | None
    """Name or path of the model they were trained on; `None` if the folder does not say."""
    architecture: str | None
    """transformers' class of that model."""
    task_type: str | None
    """PEFT's name of the task, in PEFT's folders."""
    prompts: Mapping[str, SavedPrompt]
    """The prompts by name, as `load` names them."""
    active: tuple[str, ...]
    """Names of the prompts that are active after loading."""
    adapters: tuple[str, ...]
    """Names of the PEFT adapters that were saved with them, such as a LoRA."""


def of_index(index: prompt_folder.Index) -> SavedConfig:
    """Describe a folder in our format."""
    prompts = {
        name: SavedPrompt(record.method, record.config.get("num_virtual_tokens"), record.config)
        for name, record in index.prompts.items()
    }
    architecture = index.architecture or None
    return SavedConfig(index.base_model, architecture, None, prompts, index.active, tuple(index.adapters))


def of_counts(counts: Mapping[str, int], active: tuple[str, ...]) -> SavedConfig:
    """Describe an export, which says only how many virtual tokens its prompts have."""
    prompts = {name: SavedPrompt(None, count, {}) for name, count in counts.items()}
    return SavedConfig(None, None, None, prompts, active, ())


def of_peft(fields: Mapping[str, Any], path: Path) -> SavedConfig:
    """Describe a PEFT adapter.

    Args:
        fields: Its config, as `peft_folder.read_prompt_config` checked it.
        path: Its folder, for messages.

    Returns:
        The description.

    Raises:
        CheckpointError: If it is not a prompt.
    """
    if not peft_folder.is_prompt(fields):
        raise CheckpointError(f"{path} is a PEFT adapter of type {fields['peft_type']!r}, which is not a prompt")
    base, task = fields.get("base_model_name_or_path") or None, fields.get("task_type")
    return SavedConfig(base, None, task, {"default": _prompt_of_peft(fields)}, ("default",), ())


def _prompt_of_peft(fields: Mapping[str, Any]) -> SavedPrompt:
    options = {name: value for name, value in fields.items() if name not in NOT_OPTIONS}
    return SavedPrompt(fields["peft_type"], fields.get("num_virtual_tokens"), options)
