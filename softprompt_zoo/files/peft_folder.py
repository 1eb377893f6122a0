"""A PEFT adapter's folder: two files, neither of which is ever taken for part of another adapter.

PEFT reads a config and tensors. Both are written to temporary files before either is moved into place. The config
is also in the header of the tensors' file, which PEFT ignores: however a write is interrupted, we read the folder as
the old adapter or the new one, and PEFT as one of them or none.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt_zoo.config import typed
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files.damage import check_floating
from softprompt_zoo.files.peft_fields import EDITABLE, PromptFields
from softprompt_zoo.files.pickled import read_pickled
from softprompt_zoo.files.reading import parse_json, read_json, read_metadata, read_tensors
from softprompt_zoo.files.writing import json_bytes, replace_files, tensor_bytes

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
"""Name of the tensors' file before PEFT 0.7."""
CONFIG_KEY = "softprompt_zoo_config"
"""Key in the header of the tensors' file: the config that the tensors were written with."""
ORIGIN_KEY = "softprompt_zoo"
"""Key in the header of the tensors' file, which PEFT ignores: the method that wrote it."""
PACKAGES = {"ADAPTION_PROMPT": "softprompt-zoo-llama-adapter", "CARTRIDGE": "softprompt-zoo-cartridge"}
"""Packages that read PEFT's own files of types that no built-in method reads; our exports name theirs."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The method whose prompt was exported."""

    method: str
    """Canonical name."""
    distribution: str
    """Package that offered it."""
    version: str
    """Version of that package."""


def write(
    directory: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write an adapter, replacing an existing one as a whole.

    Args:
        directory: The directory to write to; it must exist.
        fields: PEFT's config.
        tensors: Tensors by PEFT's names.
        metadata: Additional metadata for the header of their file.
    """
    config, path = json_bytes(fields), directory / CONFIG_FILE
    content = tensor_bytes(tensors, {**metadata, CONFIG_KEY: json.dumps(fields)})
    is_same = path.is_file() and path.read_bytes() == config
    files = {directory / TENSOR_FILE: content} | ({} if is_same else {path: config})
    replace_files(files, removed_first=() if is_same else (path,))  # better no config than another adapter's


def remove(directory: Path) -> None:
    """Remove an adapter, tensors first: a config alone does not count as one."""
    for name in (TENSOR_FILE, CONFIG_FILE):
        (directory / name).unlink(missing_ok=True)


def is_there(directory: Path) -> bool:
    """Return whether a directory holds an adapter, even if only in the tensors' file."""
    return (directory / CONFIG_FILE).is_file() or bool(_kept_config(directory))


def read_config(directory: Path) -> dict[str, Any]:
    """Read an adapter's config without its tensors.

    Args:
        directory: The directory.

    Returns:
        PEFT's config.

    Raises:
        CheckpointError: If it is missing or corrupt.
    """
    kept = None if (directory / CONFIG_FILE).is_file() else _kept_config(directory)
    return read_json(directory / CONFIG_FILE) if kept is None else kept


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Read an adapter.

    Args:
        directory: The directory.

    Returns:
        PEFT's config and tensors, and the metadata in the header of the tensors' file.

    Raises:
        CheckpointError: If a file is missing or corrupt, or the files belong to two adapters.
    """
    fields = read_config(directory)
    path = tensor_file(directory)
    if path.name == PICKLED_FILE:
        return fields, read_pickled(path), {}
    tensors, metadata = read_tensors(path)
    if CONFIG_KEY in metadata:
        _check_together(fields, parse_json(metadata[CONFIG_KEY], path), directory)
    return fields, tensors, metadata


def check_place(directory: Path) -> None:
    """Refuse a directory in which an adapter that is not a prompt would be overwritten.

    Args:
        directory: The directory to write a prompt to.

    Raises:
        CheckpointError: If it holds one, such as a LoRA.
    """
    if is_there(directory) and not is_prompt(fields := read_config(directory)):
        raise CheckpointError(
            f"{directory} holds a PEFT adapter of type {fields.get('peft_type')!r}, which the prompt would replace; "
            "give a new folder"
        )


def is_prompt(fields: Mapping[str, Any]) -> bool:
    """Return whether an adapter's config is that of a prompt, unlike LoRA's for example."""
    return "num_virtual_tokens" in fields or fields.get("peft_type") in PACKAGES


def read_prompt_config(directory: Path) -> dict[str, Any]:
    """Read the config of an adapter that may be a prompt, without its tensors; errors as in `read_prompt`."""
    fields = read_config(directory)
    _check_fields(fields, directory)
    return fields


def read_prompt(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor], Origin | None]:
    """Read an adapter that may be a prompt.

    Args:
        directory: The directory.

    Returns:
        PEFT's config and tensors, and the method it was exported from; `None` for files that we did not write.

    Raises:
        CheckpointError: If a file is missing or corrupt, or names no type.
    """
    fields, tensors, metadata = read(directory)
    _check_fields(fields, directory)
    check_floating(tensors, tensor_file(directory))
    origin = None
    if ORIGIN_KEY in metadata:
        with contextlib.suppress(CheckpointError):
            origin = typed.read(Origin, typed.parse(metadata[ORIGIN_KEY], ORIGIN_KEY), ORIGIN_KEY)
    return fields, tensors, origin


def tensor_file(directory: Path) -> Path:
    """Return where an adapter's tensors are.

    Args:
        directory: The adapter's directory.

    Returns:
        The file.

    Raises:
        CheckpointError: If it is missing.
    """
    found = next((directory / name for name in (TENSOR_FILE, PICKLED_FILE) if (directory / name).exists()), None)
    if found is None:
        raise CheckpointError(f"{directory} has neither {TENSOR_FILE} nor {PICKLED_FILE}; copy one of them there")
    return found


def _kept_config(directory: Path) -> dict[str, Any] | None:
    path = directory / TENSOR_FILE
    if not path.is_file():
        return None
    try:
        metadata = read_metadata(path)
        return parse_json(metadata[CONFIG_KEY], path) if CONFIG_KEY in metadata else None
    except CheckpointError:  # damaged: not an adapter, and no reason not to write one here
        return None


def _check_together(fields: Mapping[str, Any], kept: Mapping[str, Any], directory: Path) -> None:
    names = sorted({*fields, *kept} - set(EDITABLE))
    wrong = next((name for name in names if fields.get(name) != kept.get(name)), None)
    if wrong is not None:
        raise CheckpointError(
            f"{directory / CONFIG_FILE} has {wrong} = {fields.get(wrong)!r:.80}, but {TENSOR_FILE} next to it was "
            f"written with {kept.get(wrong)!r:.80}: they are files of two adapters, or one was changed; copy both "
            "again, or export the prompt again"
        )


def _check_fields(fields: Mapping[str, Any], directory: Path) -> None:
    path = directory / CONFIG_FILE
    if not isinstance(fields.get("peft_type"), str):
        raise CheckpointError(f"{path} has peft_type {fields.get('peft_type')!r}; it is not a PEFT adapter")
    known, _ = typed.fields_of(PromptFields)
    typed.read(PromptFields, {name: value for name, value in fields.items() if name in known}, str(path))
