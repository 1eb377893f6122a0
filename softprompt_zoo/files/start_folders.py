"""Folders of saved prompts among a method's options, from which a new prompt starts."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.options import GIVEN, MethodConfig
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.methods.parts.initialization import INITS
from softprompt_zoo.prompt.prompt import Prompt


def _names(config: "MethodConfig | type[MethodConfig]") -> dict[str, tuple[Any, ...]]:
    """Return the names that options accept besides prompts and folders of prompts."""
    return {field.name: field.metadata["names"] for field in dataclasses.fields(config) if "names" in field.metadata}


def _is_folder(value: Any, names: Sequence[Any]) -> bool:
    # A name takes precedence over a folder of the same name, which can be given as `./text`.
    return isinstance(value, str) and value not in (*INITS, *names) and os.path.isdir(value)


def with_absolute_folders(options: Mapping[str, Any], config_class: type[MethodConfig]) -> dict[str, Any]:
    """Make the paths of saved prompts among a method's options absolute.

    Args:
        options: What the user chose. Not changed.
        config_class: The method's `Config`.

    Returns:
        The options.
    """
    names = _names(config_class)

    def absolute(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(name, part) for part in value]
        return os.path.abspath(value) if name in names and _is_folder(value, names[name]) else value

    return {name: absolute(name, value) for name, value in options.items()}


def start_prompt(config: MethodConfig, backbone: Backbone) -> Prompt | None:
    """Return the prompt that a new one starts from.

    Args:
        config: What the user chose.
        backbone: Sizes of the model.

    Returns:
        The prompt given as `init`, or the one in the folder given as `init`; `None` if it is neither.

    Raises:
        CheckpointError: If the folder holds no prompt.
        UnsupportedError: If it holds several.
    """
    start: Any = getattr(config, "init", None)
    if isinstance(start, os.PathLike) or _is_folder(start, _names(config).get("init", ())):
        return saved_prompt(Path(start), backbone, "init")
    return start if isinstance(start, Prompt) else None


def read_folders(config: MethodConfig, backbone: Backbone) -> MethodConfig:
    """Read the saved prompts of options that take several prompts or folders, marked `prompts=True` in their metadata.

    `"given"`, which a saved config has in place of a prompt, is refused: a new prompt starts from existing ones.

    Args:
        config: What the user chose. Not changed.
        backbone: Sizes of the model.

    Returns:
        The config, with prompts in place of folders.

    Raises:
        CheckpointError: If a folder holds no prompt.
        ValueError: If an option is `"given"`.
    """
    _refuse_given(config)
    fields = [field.name for field in dataclasses.fields(config) if field.metadata.get("prompts")]
    read: dict[str, Any] = {name: _read_each(getattr(config, name), backbone, name) for name in fields}
    return dataclasses.replace(config, **read) if read else config


def _read_each(values: Any, backbone: Backbone, option: str) -> Any:
    """Read the folders among several prompts; other values are returned unchanged."""
    return tuple(_prompt(value, backbone, option) for value in values) if isinstance(values, tuple) else values


def _refuse_given(config: MethodConfig) -> None:
    for name in _names(config):
        value = getattr(config, name)
        if isinstance(value, str) and value == GIVEN:
            raise ValueError(f"{name} is {GIVEN!r}, which only saved prompts may have; give the folder or the prompt")


def _prompt(value: Any, backbone: Backbone, option: str) -> Prompt:
    return value if isinstance(value, Prompt) else saved_prompt(Path(value), backbone, option)


def saved_prompt(directory: Path, backbone: Backbone, option: str) -> Prompt:
    """Read the only active prompt of a folder; warn of adapters saved next to it, which are not read.

    Args:
        directory: A folder that `save_pretrained` wrote, or a PEFT prompt adapter.
        backbone: Sizes of the model.
        option: The option for which the folder was given, for the message.

    Returns:
        The prompt, not attached to a model.

    Raises:
        CheckpointError: If the folder holds no prompt.
        UnsupportedError: If it holds several.
    """
    from softprompt_zoo.files.formats import read_folder, warn_of_adapters

    prompts, active = read_folder(directory, backbone)
    warn_of_adapters(directory)
    names = active or tuple(prompts)
    if len(names) != 1:
        raise UnsupportedError(
            f"{option} is {directory}, where {len(names)} prompts are active; load it and give one: model.prompts[name]"
        )
    return prompts[names[0]]
