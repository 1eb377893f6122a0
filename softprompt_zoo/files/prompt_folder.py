"""Our own format of a directory: the training state in `model.safetensors`, and an index that describes it.

The index is written into the header of the tensors' file, so that both change in one step, and again as
`softprompt_zoo.json`, last, for people and for recognizing our directories.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from torch import Tensor

from softprompt_zoo.config import typed
from softprompt_zoo.config.checks import LARGEST_WEIGHT, is_weight
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files.reading import PromptName, check_format, read_json, read_metadata, read_tensors
from softprompt_zoo.files.writing import write_json, write_tensors

FORMAT_VERSION = 1
INDEX_FILE = "softprompt_zoo.json"
TENSOR_FILE = "model.safetensors"
KEY_PREFIX = "prompts."
METADATA_KEY = "softprompt_zoo"
LEFT_OUT = ("wrappers", "placement")
"""Fields of an entry that are written only if they are set."""


class SavedSizes(TypedDict):
    """Sizes of a model as they are saved, from `Backbone.sizes`."""

    family: str
    hidden_size: int
    layers: dict[str, Annotated[list[list[int]], typed.Allowed("a list of at least one layer", bool)]]


@dataclasses.dataclass(frozen=True)
class WrapperEntry:
    """The index's entry for a wrapper that ran around a prompt's hooks."""

    distribution: str
    """Package that offered it."""
    version: str
    """Version of that package."""
    config: dict[str, Any] | None = None
    """Its options, if the user chose it for this prompt."""


class Placed(TypedDict):
    """Fields of a `Placement`."""

    dropout: Annotated[float, typed.Allowed("a number in [0, 1)", lambda number: 0 <= number < 1)]
    always_visible: bool
    weight: Annotated[float, typed.Allowed(f"a number from 0 to {LARGEST_WEIGHT:.0f}", is_weight)]


@dataclasses.dataclass(frozen=True)
class IndexEntry:
    """The index's entry for a prompt."""

    method: str
    """Canonical name of its method."""
    distribution: str
    """Package that offered the method."""
    version: str
    """Version of that package."""
    is_merged: bool
    """Whether the tensors are plain tokens."""
    config: dict[str, Any]
    """The method's config."""
    weight: Annotated[float, typed.Allowed(f"a number from 0 to {LARGEST_WEIGHT:.0f}", is_weight)] = 1.0
    """Factor on its share of attention."""
    is_trained: bool = True
    """Whether gradients reached it; in files without this field, all prompts may have been trained."""
    wrappers: dict[str, WrapperEntry] = dataclasses.field(default_factory=dict)
    """The wrappers around its hooks, by name."""
    placement: Annotated[dict[str, Any], Placed] | None = None
    """Where the method of a merged prompt places its tokens, so that it can be read without the method."""


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of a directory."""

    backbone: Annotated[dict[str, Any], SavedSizes]
    """Sizes of the model it was made for."""
    active: tuple[str, ...]
    """Names of the active prompts, in order."""
    prompts: dict[PromptName, IndexEntry]
    """Prompts by name, in the order they were added."""
    adapters: dict[str, str] = dataclasses.field(default_factory=dict)
    """Folders of the PEFT adapters on the model, by name; relative to the directory."""
    base_model: str | None = None
    """Name or path that the model was loaded from, if known."""
    architecture: str = ""
    """Name of the model's class."""


def check_place(directory: Path) -> None:
    """Refuse a directory in which the weights of a model would be overwritten.

    Args:
        directory: The directory to write prompts to.

    Raises:
        CheckpointError: If `model.safetensors` there is not ours.
    """
    path = directory / TENSOR_FILE
    try:
        is_ours = METADATA_KEY in read_metadata(path)
    except CheckpointError:  # missing, or damaged
        return
    if not is_ours:
        raise CheckpointError(f"{path} holds the weights of a model, which prompts would replace; give a new folder")


def write(
    directory: Path, index: Index, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a directory, leaving other files in it alone.

    Args:
        directory: The directory to write to; it must exist.
        index: Its index.
        tensors: The training state, keyed `prompts.<name>.…` as in the model's `state_dict`, and the adapters'.
        metadata: Additional metadata for the header of their file.
    """
    content = {"format": FORMAT_VERSION, **dataclasses.asdict(index)}
    for entry in content["prompts"].values():  # rare fields are left out: earlier versions do not know them
        for name in [name for name in LEFT_OUT if not entry[name]]:
            del entry[name]
    write_tensors(directory / TENSOR_FILE, tensors, {METADATA_KEY: json.dumps(content), **(metadata or {})})
    write_json(directory / INDEX_FILE, content)


def is_there(directory: Path) -> bool:
    """Return whether a directory has our index."""
    return (directory / INDEX_FILE).is_file()


def read(directory: Path) -> tuple[Index, dict[str, dict[str, Tensor]]]:
    """Read a directory and check that it is complete.

    Args:
        directory: The directory.

    Returns:
        The index, and each prompt's tensors by their names within it.

    Raises:
        CheckpointError: If a file is missing, corrupt, in a later format or does not match the index.
    """
    read_json(directory / INDEX_FILE)
    path = directory / TENSOR_FILE
    tensors, metadata = read_tensors(path)
    index = _index(metadata, path)
    grouped: dict[str, dict[str, Tensor]] = {name: {} for name in index.prompts}
    for key, tensor in tensors.items():
        name, _, rest = key.removeprefix(KEY_PREFIX).partition(".")
        if index.adapters and not key.startswith(KEY_PREFIX):
            continue  # an adapter's training state, for Trainer; read separately
        if not key.startswith(KEY_PREFIX) or name not in grouped:
            raise CheckpointError(
                f"{path} holds the tensor {key!r}, which belongs to no prompt in its index ({', '.join(grouped)})"
            )
        grouped[name][rest] = tensor
    return index, grouped


def read_index(directory: Path) -> Index:
    """Return the index of a directory without reading its tensors; errors as in `read`."""
    path = directory / TENSOR_FILE
    return _index(read_metadata(path), path)


def _index(metadata: Mapping[str, str], path: Path) -> Index:
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} was not written by softprompt_zoo; expected the prompts that {INDEX_FILE} names")
    where = f"the index in {path}"
    content = typed.parse(metadata[METADATA_KEY], where)
    check_format(content, FORMAT_VERSION, where)
    return typed.read(Index, {name: value for name, value in content.items() if name != "format"}, where)
