"""Saving prompts: always our files, with PEFT's next to them if PEFT can express the active prompt."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.peft_layers import adapter_parameters, has_adapters
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files import peft_export, peft_folder, prompt_folder, weight_adapter_files, weight_adapters
from softprompt_zoo.files.card import card_file
from softprompt_zoo.files.card.page import Described, page
from softprompt_zoo.files.other_versions import placement_of, wrappers_of
from softprompt_zoo.files.writing import make_directory
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.prompt_set import PromptSet

WITH_ADAPTERS = "it was saved with adapters in the model's layers, and PEFT cannot hold a prompt next to those"


def save(
    model: Any,
    own: PromptSet,
    directory: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Save prompts: always our files, and PEFT's if PEFT can express the active prompt.

    Args:
        model: The model; PEFT adapters on it are saved as well, each in a separate folder.
        own: Its prompts.
        directory: The directory to write to; created if missing. Other files in it are left alone.
        state_dict: The model's state, if the caller gathered it from several devices.
        names: The prompts to save; all by default. The active ones among them are active after loading; if none is and
            only one is saved, that one is.

    Raises:
        CheckpointError: If the directory is a file, or holds a model's weights or another PEFT adapter. Nothing is
            written.
        UnsupportedError: If PEFT has injected an adapter into the prompts.
    """
    _refuse_adapted(own.prompts)
    path = make_directory(directory)
    prompt_folder.check_place(path)
    replaces = prompt_folder.is_there(path)
    if not replaces:  # a PEFT adapter in the root of our directory was put there by save_pretrained
        peft_folder.check_place(path)
    chosen = list(own.prompts if names is None else names)
    active = _active(own, chosen)
    records = {name: _record(prompt, own.backbone) for name, prompt in own.prompts.items() if name in chosen}
    found = weight_adapters.collect(model, state_dict)
    folders = weight_adapter_files.folders(found)
    index = prompt_folder.Index(own.backbone.sizes(), active, records, folders, own.base_name, own.architecture)
    packed, described = weight_adapter_files.pack(found)
    prompt_folder.write(path, index, _state(model, own, state_dict, chosen) | packed, described)
    weight_adapter_files.write_folders(path, found)
    not_for_peft = WITH_ADAPTERS if found else peft_export.write_copy(own, path, active)
    if replaces and not_for_peft is not None:
        peft_folder.remove(path)  # our copy of an earlier prompt
    card_file.write(path, page(Described(own, chosen, active, tuple(found), not_for_peft)))


def _refuse_adapted(prompts: Mapping[str, Prompt]) -> None:
    name = next((name for name, prompt in prompts.items() if has_adapters(prompt)), None)
    if name is not None:
        raise UnsupportedError(
            f"PEFT has put an adapter into the prompt {name!r} itself, which cannot be saved; add the adapter to the "
            "model before the prompts, or with model.add_adapter, which leaves prompts alone"
        )


def _active(own: PromptSet, chosen: Sequence[str]) -> tuple[str, ...]:
    """Return which of the chosen prompts are active after loading: a single one chosen among several is."""
    active = tuple(name for name in own.active if name in chosen)
    is_alone = len(chosen) == 1 < len(own.prompts)
    return active or (tuple(chosen) if is_alone else ())


def _state(
    model: Any, own: PromptSet, state_dict: Mapping[str, Tensor] | None, chosen: Sequence[str]
) -> dict[str, Tensor]:
    """Return the state of the chosen prompts and of the adapters, by the names in the model's state."""
    adapted = dict(adapter_parameters(model))
    tensors = _own_state(own.prompts) | adapted if state_dict is None else _gathered(state_dict, adapted)
    others = tuple(f"{prompt_folder.KEY_PREFIX}{name}." for name in own.prompts if name not in chosen)
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(others)}


def _gathered(state_dict: Mapping[str, Tensor], adapted: Collection[str]) -> dict[str, Tensor]:
    """Extract the state of prompts and adapters from a model's state."""
    is_own = {key: key.startswith(prompt_folder.KEY_PREFIX) or key in adapted for key in state_dict}
    return {key: tensor for key, tensor in state_dict.items() if is_own[key]}


def _own_state(prompts: Mapping[str, Prompt]) -> dict[str, Tensor]:
    """Return the state of prompts, by the names in their model's state."""
    states = {f"{prompt_folder.KEY_PREFIX}{name}.": prompt.state_dict() for name, prompt in prompts.items()}
    return {prefix + key: tensor for prefix, state in states.items() for key, tensor in state.items()}


def _record(prompt: Prompt, backbone: Backbone) -> prompt_folder.IndexEntry:
    method = prompt.loaded
    return prompt_folder.IndexEntry(
        method=method.name,
        distribution=method.distribution,
        version=method.version,
        is_merged=prompt.is_merged,
        config=prompt.config.to_dict(),
        weight=prompt.weight,
        is_trained=prompt.is_trained,
        wrappers=wrappers_of(prompt),
        placement=placement_of(prompt, backbone),
    )
