"""The formats of a folder of prompts: each is a `Format`, and `FORMATS` lists them in the order they are looked for.

A new format is a module that writes and reads its files, and a line in `FORMATS`.
"""

import abc
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.saved_sizes import check_sizes
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files import (
    embeddings,
    exports,
    keys_values,
    peft_folder,
    peft_import,
    peft_modules,
    prompt_folder,
    saved_config,
    vocabulary,
    weight_adapter_files,
)
from softprompt_zoo.files.exports import SavedPrompts
from softprompt_zoo.files.hub.names import is_hub_name
from softprompt_zoo.files.prompt_records import restore
from softprompt_zoo.files.reading import existing_directory
from softprompt_zoo.files.saved_config import SavedConfig


@dataclasses.dataclass(frozen=True)
class Format(abc.ABC):
    """A format; its methods raise `CheckpointError` for damaged folders."""

    index_file: str
    """The file that identifies it."""
    other_files: tuple[str, ...]
    """Patterns of the other files that it may need."""

    def is_there(self, directory: Path) -> bool:
        """Return whether a folder is in this format."""
        return (directory / self.index_file).is_file()

    @abc.abstractmethod
    def read(self, directory: Path, backbone: Backbone, pools_prompt: bool) -> SavedPrompts:
        """Read the prompts.

        Args:
            directory: The folder.
            backbone: Sizes of the model that they are for.
            pools_prompt: For a PEFT adapter, as in `peft_import.read`.

        Returns:
            The prompts by name, trainable as they were when saved, and the names of the active ones.

        Raises:
            BackboneMismatchError: If they are for a model of other sizes.
            UnknownMethodError: If the method of one is not installed.
            UnsupportedError: If one cannot work on this model.
            ValueError: If `pools_prompt` is set, but this is not a PEFT adapter.
        """

    @abc.abstractmethod
    def describe(self, directory: Path) -> SavedConfig:
        """Read what the folder says about its prompts, but no values."""

    def names(self, directory: Path) -> list[str]:
        """List the names of the prompts; none if the folder holds something else."""
        return list(self.describe(directory).prompts)

    def other_content(self, directory: Path) -> str | None:
        """Say what the folder holds according to its index, if that is no prompt; `None` if it is one."""
        return None

    def adapter_names(self, directory: Path) -> tuple[str, ...]:
        """List the PEFT adapters that were on the model when the prompts were saved."""
        return ()

    def adapters(self, directory: Path) -> dict[str, weight_adapter_files.SavedAdapter]:
        """Read those adapters, by name."""
        return {}

    def model_weights(self, directory: Path) -> dict[str, Tensor]:
        """Read the weights of the model itself that were saved with the prompts, by their names in the model."""
        return {}


class OwnFormat(Format):
    """What `save_pretrained` writes."""

    def read(self, directory: Path, backbone: Backbone, pools_prompt: bool) -> SavedPrompts:
        """Restore each prompt from its record."""
        _refuse_pooling(pools_prompt, directory)
        index, tensors = prompt_folder.read(directory)
        check_sizes(index.backbone, backbone.sizes(), str(directory))
        prompts = {}
        for name, record in index.prompts.items():
            prompts[name] = restore(name, record, tensors[name], backbone, directory)
        return prompts, index.active

    def describe(self, directory: Path) -> SavedConfig:
        """Read the index."""
        return saved_config.of_index(prompt_folder.read_index(directory))

    def adapter_names(self, directory: Path) -> tuple[str, ...]:
        """List those in the index."""
        return tuple(prompt_folder.read_index(directory).adapters)

    def adapters(self, directory: Path) -> dict[str, weight_adapter_files.SavedAdapter]:
        """Read them from the folders that the index names."""
        return weight_adapter_files.read(directory, prompt_folder.read_index(directory).adapters)


class PeftFormat(Format):
    """A PEFT adapter."""

    def is_there(self, directory: Path) -> bool:
        """Return whether there is one, even if only in the tensors' file."""
        return peft_folder.is_there(directory)

    def read(self, directory: Path, backbone: Backbone, pools_prompt: bool) -> SavedPrompts:
        """Read its only prompt."""
        return {"default": peft_import.read(directory, backbone, pools_prompt)}, ("default",)

    def describe(self, directory: Path) -> SavedConfig:
        """Read its config."""
        return saved_config.of_peft(peft_folder.read_prompt_config(directory), directory)

    def names(self, directory: Path) -> list[str]:
        """Return PEFT's name of an adapter, if this one is a prompt."""
        return ["default"] if self.other_content(directory) is None else []

    def other_content(self, directory: Path) -> str | None:
        """Return the type of an adapter that is not a prompt, such as LoRA."""
        fields = peft_folder.read_config(directory)
        if peft_folder.is_prompt(fields):
            return None
        if not isinstance(fields.get("peft_type"), str):
            return f"another library's adapter: its {peft_folder.CONFIG_FILE} names no peft_type"
        return f"a PEFT adapter of type {fields['peft_type']!r}, which is not a prompt"

    def model_weights(self, directory: Path) -> dict[str, Tensor]:
        """Read the modules that PEFT trained and saved with the prompt."""
        return peft_modules.of_model(peft_folder.read_prompt(directory)[1])


@dataclasses.dataclass(frozen=True)
class ExportedFormat(Format):
    """What `export` writes for an engine."""

    read_export: Callable[[Path, Backbone], SavedPrompts]
    counts: Callable[[Path], tuple[dict[str, int], tuple[str, ...]]]
    """Returns the number of virtual tokens of each prompt, and the names of the active ones."""

    def read(self, directory: Path, backbone: Backbone, pools_prompt: bool) -> SavedPrompts:
        """Read it as plain prompts."""
        _refuse_pooling(pools_prompt, directory)
        return self.read_export(directory, backbone)

    def describe(self, directory: Path) -> SavedConfig:
        """Read the numbers of virtual tokens."""
        return saved_config.of_counts(*self.counts(directory))


FORMATS: tuple[Format, ...] = (
    OwnFormat(prompt_folder.INDEX_FILE, (prompt_folder.TENSOR_FILE, "adapters/*")),
    PeftFormat(peft_folder.CONFIG_FILE, (peft_folder.TENSOR_FILE, peft_folder.PICKLED_FILE)),
    ExportedFormat(
        vocabulary.INDEX_FILE,
        (vocabulary.TENSOR_FILE, vocabulary.SHARDS_FILE, "model-*.safetensors"),
        exports.read_vocabulary,
        vocabulary.counts,
    ),
    ExportedFormat(embeddings.INDEX_FILE, (embeddings.TENSOR_FILE,), exports.read_embeddings, embeddings.counts),
    ExportedFormat(keys_values.INDEX_FILE, (keys_values.TENSOR_FILE,), exports.read_keys_values, keys_values.counts),
)
"""All of them. A folder that `save_pretrained` wrote may also hold a PEFT adapter, so our format comes first."""


def find_format(directory: Path) -> Format | None:
    """Return the format of a folder; `None` if it is in none of them, where `format_of` raises an error."""
    return next((one for one in FORMATS if one.is_there(directory)), None)


def format_of(directory: Path) -> Format:
    """Return the format of a folder.

    Args:
        directory: The folder.

    Raises:
        CheckpointError: If it is in none of them.
    """
    found = find_format(directory)
    if found is None:
        raise CheckpointError(
            f"{directory} has none of {', '.join(one.index_file for one in FORMATS)}; it holds no saved prompt"
        )
    return found


def find_directory(
    directory: str | os.PathLike[str], revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Return the folder of a saved prompt, fetching it if it names a repository and no local folder.

    Args:
        directory: A folder, or the name of a repository as a string.
        revision: Branch, tag or commit of the repository; its main branch by default.
        token: Access token for the hub; by default the one that huggingface_hub has stored.

    Returns:
        The folder.

    Raises:
        CheckpointError: If it is neither.
        HubError: If the repository cannot be fetched, or holds no prompt.
        TypeError: If it is neither a string nor a path.
        ValueError: If a revision is given for a folder.
    """
    if isinstance(directory, str) and not os.path.exists(directory) and is_hub_name(directory):
        from softprompt_zoo.files.hub.download import fetch

        return fetch(directory, FORMATS, revision, token)
    path = existing_directory(directory)
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}, but {str(directory)!r} is a local folder, which has none; leave it out, or "
            "name a repository"
        )
    return path


def read_folder(directory: Path, backbone: Backbone, pools_prompt: bool = False) -> SavedPrompts:
    """Read saved prompts for a backbone, in any format; arguments, result and errors as for `Format.read`.

    Raises:
        CheckpointError: If the folder is missing, truncated, corrupt or in an unknown format.
    """
    found, active = format_of(directory).read(directory, backbone, pools_prompt)
    _check_active(active, found, directory)
    return found, active


def warn_of_adapters(directory: Path) -> None:
    """Warn that the prompts of a folder were saved alongside PEFT adapters, which are not read.

    Args:
        directory: A folder of prompts.
    """
    names = format_of(directory).adapter_names(directory)
    if names:
        warnings.warn(
            f"{directory} holds adapters next to its prompt ({', '.join(map(repr, names))}), but only the prompt is "
            "read; on a model without them it gives different results. zoo.load loads both",
            stacklevel=3,
        )


def _refuse_pooling(pools_prompt: bool, directory: Path) -> None:
    if pools_prompt:
        raise ValueError(
            f"pools_prompt is True, which is only for PEFT adapters; {directory} is not one, and its prompts are read "
            "as they were trained; leave it out"
        )


def _check_active(active: tuple[str, ...], names: Iterable[str], path: Path) -> None:
    missing = next((name for name in active if name not in names), None)
    if missing is not None:
        raise CheckpointError(
            f"{path} says that {missing!r} is active, but holds no such prompt; save the prompts again"
        )
    if len(set(active)) < len(active):
        raise CheckpointError(
            f"{path} says that {', '.join(map(repr, active))} are active, one of them twice; save the prompts again"
        )
