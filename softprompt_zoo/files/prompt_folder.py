"""Our own directory: the training state in `model.safetensors`, and an index of what it is.

The index is written into the header of the tensors' file, so that both change in one step, and once more
as `softprompt_zoo.json`, last, for people and for telling our directories from others'.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from torch import Tensor

from softprompt_zoo.config import typed
from softprompt_zoo.config.checks import LARGEST_WEIGHT, is_weight
from softprompt_zoo.config.options import PromptName
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files.reading import check_format, read_json, read_metadata, read_tensors
from softprompt_zoo.files.writing import write_json, write_tensors

FORMAT_VERSION = 1
INDEX_FILE = "softprompt_zoo.json"
TENSOR_FILE = "model.safetensors"
KEY_PREFIX = "prompts."
METADATA_KEY = "softprompt_zoo"
LEFT_OUT = ("wrappers", "placement")
"""Fields of an entry that are only written where they say something."""


class Sizes(TypedDict):
    """Sizes of a model, as `Backbone.sizes` gives them."""

    family: str
    hidden_size: int
    layers: dict[str, Annotated[list[list[int]], typed.Allowed("a list of at least one layer", bool)]]


@dataclasses.dataclass(frozen=True)
class WrapperEntry:
    """What the index says of a wrapper that ran around a prompt's hooks."""

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
    """What the index says of one prompt."""

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
    """Whether gradients reached it; files that do not say may have trained all."""
    wrappers: dict[str, WrapperEntry] = dataclasses.field(default_factory=dict)
    """The wrappers around its hooks, by name."""
    placement: Annotated[dict[str, Any], Placed] | None = None
    """Of a merged prompt where its method lets the tokens go, so that it can be read without the method."""


@dataclasses.dataclass(frozen=True)
class Index:
    """What a directory holds."""

    backbone: Annotated[dict[str, Any], Sizes]
    """Sizes of the model it was made for."""
    active: tuple[str, ...]
    """Names of the active prompts, in order."""
    prompts: dict[PromptName, IndexEntry]
    """Prompts by name, in the order they were added."""
    adapters: dict[str, str] = dataclasses.field(default_factory=dict)
    """Folders of the PEFT adapters on the model, by their names; relative to the directory."""
    base_model: str | None = None
    """Name or path that the model was loaded from, if it is known."""
    architecture: str = ""
    """Name of the model's class."""


def check_place(directory: Path) -> None:
    """Refuse a directory where the weights of a model would be overwritten.

    Args:
        directory: Where prompts shall be written.

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
    """Write a directory; other files in it are left alone.

    Args:
        directory: Where to; it must exist.
        index: What is written.
        tensors: The training state, keyed `prompts.<name>.…` as in the model's `state_dict`, and the adapters'.
        metadata: What else goes into the header of their file.
    """
    content = {"format": FORMAT_VERSION, **dataclasses.asdict(index)}
    for entry in content["prompts"].values():  # what is rare is left out: earlier versions do not know it
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
        The index, and for each prompt its tensors by their name within it.

    Raises:
        CheckpointError: If a file is missing, corrupt, of a later format or not what the index says.
    """
    read_json(directory / INDEX_FILE)
    path = directory / TENSOR_FILE
    tensors, metadata = read_tensors(path)
    index = _index(metadata, path)
    grouped: dict[str, dict[str, Tensor]] = {name: {} for name in index.prompts}
    for key, tensor in tensors.items():
        name, _, rest = key.removeprefix(KEY_PREFIX).partition(".")
        if index.adapters and not key.startswith(KEY_PREFIX):
            continue  # an adapter's training state, for Trainer; it is read from its own folder
        if not key.startswith(KEY_PREFIX) or name not in grouped:
            raise CheckpointError(f"{path} holds the tensor {key!r} of no prompt in its index ({', '.join(grouped)})")
        grouped[name][rest] = tensor
    return index, grouped


def read_index(directory: Path) -> Index:
    """Return the index of a directory, of which no tensor is read; errors as of `read`."""
    path = directory / TENSOR_FILE
    return _index(read_metadata(path), path)


def _index(metadata: Mapping[str, str], path: Path) -> Index:
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} was not written by softprompt_zoo; expected the prompts that {INDEX_FILE} names")
    where = f"the index in {path}"
    content = typed.parse(metadata[METADATA_KEY], where)
    check_format(content, FORMAT_VERSION, where)
    return typed.read(Index, {name: value for name, value in content.items() if name != "format"}, where)
