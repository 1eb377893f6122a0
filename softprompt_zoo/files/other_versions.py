"""Prompts saved with another version of their method, one that is not installed, or within other wrappers."""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.options import Options
from softprompt_zoo.errors import CheckpointError, PluginError, UnknownMethodError
from softprompt_zoo.files import peft_folder, prompt_folder
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.registry.absent_method import AbsentMethod
from softprompt_zoo.registry.discovery import install_advice
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.tokens.kinds import PlainTokens


def method_of(record: prompt_folder.IndexEntry, where: Path) -> LoadedMethod:
    """Find the method of a saved prompt; a merged one is read without it, unless that version saved it.

    Args:
        record: The prompt's entry in the index.
        where: The folder it is read from.

    Returns:
        The method.

    Raises:
        UnknownMethodError: If it is not installed, and the file does not say where the tokens go.
    """
    try:
        method = registry.lookup_saved(record.method, record.distribution, record.version, str(where))
        if record.placement is None or not is_of_another(record, method):
            return method
    except UnknownMethodError as error:
        if record.placement is None:
            way = "; its two PEFT files load without the method once they are copied into a separate folder"
            raise UnknownMethodError(f"{error}{way if peft_folder.is_there(where) else ''}") from error
    absent = AbsentMethod(record.method, record.distribution, record.version, record.placement)
    return absent.loaded(registry.wrappers)


def is_of_another(record: prompt_folder.IndexEntry, method: LoadedMethod) -> bool:
    """Return whether a prompt was saved by another version of the method, or by another package."""
    return (record.distribution, record.version) != (method.distribution, method.version)


def upgraded(
    record: prompt_folder.IndexEntry, state: Mapping[str, Tensor], method: LoadedMethod
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Let a method convert what another version of it saved.

    Args:
        record: The prompt's entry in the index.
        state: The tensors of its `Parameters`.
        method: The installed method.

    Returns:
        The options and tensors of this version; unchanged if the method has no `upgrade` hook, or if no conversion is
        needed.

    Raises:
        PluginError: If the hook returns anything else.
    """
    if record.is_merged or not is_of_another(record, method) or not method.has("upgrade"):
        return record.config, dict(state)
    found = method.call("upgrade", options=copy.deepcopy(record.config), state=dict(state), version=record.version)
    match found:
        case (Mapping() as options, Mapping() as tensors) if all(isinstance(t, Tensor) for t in tensors.values()):
            return dict(options), dict(tensors)
    raise PluginError(
        f"{method.describe('upgrade')} returned {found!r:.80}; expected a pair: options, and tensors by name"
    )


@torch.no_grad()
def placement_of(prompt: Prompt, backbone: Backbone) -> dict[str, Any] | None:
    """Return where a merged prompt's method places its tokens, for loading it without the method.

    Args:
        prompt: A prompt.
        backbone: Sizes of its model.

    Returns:
        Fields of a `Placement`; `None` if the prompt is not merged, or its method places different tokens, or
            not in every row.
    """
    if not isinstance(prompt.learned, PlainTokens):
        return None
    tokens = prompt.learned.tokens(backbone)
    given: dict[str, Any] = {"config": prompt.config, "parameters": prompt.learned, "tokens": tokens}
    placed = prompt.loaded.call_own("inject", {**given, "backbone": backbone, "text": None})
    if placed.tokens is not tokens or placed.mask is not None:
        return None
    return {"dropout": placed.dropout, "always_visible": placed.always_visible, "weight": placed.weight}


def wrappers_of(prompt: Prompt) -> dict[str, prompt_folder.WrapperEntry]:
    """Return the entries to save for the wrappers around a prompt's hooks."""
    return {
        name: prompt_folder.WrapperEntry(
            wrapper.distribution,
            wrapper.version,
            prompt.wrappers[name].to_dict() if name in prompt.wrappers else None,
        )
        for name, wrapper in prompt.loaded.wrappers.acting(prompt.wrappers).items()
    }


def choose_wrappers(record: prompt_folder.IndexEntry, method: LoadedMethod, where: str) -> dict[str, Options]:
    """Choose the wrappers that a saved prompt had, and warn of those missing or of another version.

    Args:
        record: The prompt's entry in the index.
        method: Its method.
        where: The prompt, for messages.

    Returns:
        The options of wrappers that have some, by name.

    Raises:
        CheckpointError: If one does not accept the options it was saved with.
    """
    there = {wrapper.name: wrapper for wrapper in method.wrappers.plugins}
    for name, saved in record.wrappers.items():
        if name not in there:
            advice = install_advice(saved.distribution, saved.version)
            _warn(where, f"the wrapper {name!r} around its hooks, which is not installed: {advice}")
        elif (saved.distribution, saved.version) != (there[name].distribution, there[name].version):
            found = f"{saved.distribution} {saved.version}".strip()
            _warn(where, f"the wrapper {name!r} of {found}, and now runs with that of {there[name].origin}")
    wanted = {n: saved.config for n, saved in record.wrappers.items() if n in there and saved.config is not None}
    try:
        return method.wrappers.choose(wanted)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} was saved within a wrapper of another version: {error}") from error


def _warn(where: str, difference: str) -> None:
    warnings.warn(f"{where} was saved with {difference}; its results may differ", stacklevel=7)
