"""PEFT adapters in a saved directory: in one file with the prompts, and again in folders that PEFT can load.

`zoo.load` reads only `model.safetensors`, which is replaced in one step, so prompts and adapters always come from the
same save. The folders are written after it, for PEFT.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from softprompt_zoo.config import typed
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files import peft_folder, prompt_folder
from softprompt_zoo.files.damage import check_floating
from softprompt_zoo.files.reading import parse_json, read_tensors

FOLDER = "adapters"
"""Subfolder of a saved directory that contains a folder for each adapter."""
METADATA_KEY = "softprompt_zoo_adapters"
"""Key in the header of `model.safetensors`: each adapter's config, and where its tensors are in the file."""


@dataclasses.dataclass(frozen=True)
class SavedAdapter:
    """A saved PEFT adapter."""

    fields: Mapping[str, Any]
    """PEFT's config."""
    tensors: Mapping[str, Tensor]
    """Tensors by PEFT's names."""
    state_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Maps PEFT's name of a tensor to its name in the model's `state_dict`, for those that are in it unchanged."""


def folders(adapters: Mapping[str, SavedAdapter]) -> dict[str, str]:
    """Return each adapter's folder for PEFT, relative to the saved directory."""
    return {name: f"{FOLDER}/{name}" for name in adapters}


def pack(adapters: Mapping[str, SavedAdapter]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of adapters for `model.safetensors`.

    Args:
        adapters: Adapters by name.

    Returns:
        Tensors, by their names in the model's state if they are in it; and the header's metadata about them.
    """
    tensors: dict[str, Tensor] = {}
    described = {}
    for name, adapter in adapters.items():
        keys = {key: adapter.state_names.get(key, f"{FOLDER}.{name}.{key}") for key in adapter.tensors}
        tensors |= {keys[key]: tensor for key, tensor in adapter.tensors.items()}
        described[name] = {"config": dict(adapter.fields), "tensors": keys}
    return tensors, {METADATA_KEY: json.dumps(described)} if described else {}


def write_folders(directory: Path, adapters: Mapping[str, SavedAdapter]) -> None:
    """Write adapters, each into a separate folder that PEFT can load.

    Args:
        directory: A saved directory.
        adapters: Adapters by name.
    """
    for name, folder in folders(adapters).items():
        (directory / folder).mkdir(parents=True, exist_ok=True)
        peft_folder.write(directory / folder, adapters[name].fields, adapters[name].tensors, {})


def read(directory: Path, found: Mapping[str, str]) -> dict[str, SavedAdapter]:
    """Read the adapters of a saved directory.

    Args:
        directory: A saved directory.
        found: Their folders by name, from its index.

    Returns:
        The adapters by name.

    Raises:
        CheckpointError: If one is missing or corrupt, or its folder is not in the directory.
    """
    for name, folder in found.items():
        _check_folder(name, folder, directory)
    if not found:
        return {}
    path = directory / prompt_folder.TENSOR_FILE
    tensors, metadata = read_tensors(path)
    if METADATA_KEY not in metadata:  # written by an earlier version
        return {name: _read_folder(directory / folder) for name, folder in found.items()}
    described = parse_json(metadata[METADATA_KEY], path)
    return {name: _unpack(name, described.get(name), tensors, path) for name in found}


def _check_folder(name: str, folder: str, directory: Path) -> None:
    """Refuse a folder with an unexpected name, and a name that leads out of the directory on any system."""
    if folder != f"{FOLDER}/{name}" or name in ("", ".", "..") or {"/", "\\"} & {*name}:
        raise CheckpointError(
            f"the index of {directory} has the adapter {name!r} in {folder!r}; expected {FOLDER}/<name>"
        )


def _read_folder(folder: Path) -> SavedAdapter:
    fields, tensors, _ = peft_folder.read(folder)
    check_floating(tensors, folder)
    return SavedAdapter(fields, tensors)


class Described(TypedDict):
    """The header's entry for an adapter."""

    config: dict[str, Any]
    """PEFT's config."""
    tensors: dict[str, str]
    """Maps PEFT's names of the tensors to those in the file."""


def _unpack(name: str, described: Any, tensors: Mapping[str, Tensor], path: Path) -> SavedAdapter:
    content = typed.read(Described, described, f"{path}: its description of the adapter {name!r}")
    fields, keys = content["config"], content["tensors"]
    missing = next((key for key in keys.values() if key not in tensors), None)
    if missing is not None:
        raise CheckpointError(f"{path} has no tensor {missing!r:.80} for the adapter {name!r}; save it again")
    own = {key: tensors[place] for key, place in keys.items()}
    check_floating(own, path)
    return SavedAdapter(fields, own)
