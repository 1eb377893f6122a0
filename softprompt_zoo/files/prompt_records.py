"""Restoring a saved prompt from its record and tensors, whose sizes are checked before anything is allocated."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_weight
from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.errors import CheckpointError, ShapeError
from softprompt_zoo.files import prompt_folder
from softprompt_zoo.files.damage import check_floating
from softprompt_zoo.files.other_versions import choose_wrappers, is_of_another, method_of, upgraded
from softprompt_zoo.prompt.fits import check_room
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.task_heads import copy_saved_head
from softprompt_zoo.registry.discovery import install_advice
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.tokens.kinds import PlainTokens, check_virtual_tokens, from_tensors, stored_shapes

LEARNED, HEAD = "learned.", "head."
"""Prefixes of the names of a prompt's own tensors, and of its trained head's."""
MERGED = f"{LEARNED}tensors."
"""Prefix of the names of plain tokens."""


def restore(
    name: str, record: prompt_folder.IndexEntry, tensors: Mapping[str, Tensor], backbone: Backbone, directory: Path
) -> Prompt:
    """Make a prompt from a directory in our format.

    Args:
        name: Its name.
        record: Its entry in the index.
        tensors: Its tensors in the file. Copied.
        backbone: Sizes of the model.
        directory: The directory they were read from, for messages.

    Returns:
        The prompt, trainable as it was when saved.

    Raises:
        CheckpointError: If the tensors are not those of such a prompt on this model, or not floating-point numbers.
        BackboneMismatchError: If it has a trained head that the model lacks.
        UnknownMethodError: If its method is not installed.
        UnsupportedError: If it leaves no room for text.
    """
    method = method_of(record, directory)
    where = f"prompt {name!r} in {directory}{_versions(record, method)}"
    head_names = dict.fromkeys(key.partition(".")[0] for key in _under(HEAD, tensors))
    head = copy_saved_head(head_names, backbone.inside.heads, where)
    with _advising(record, method):
        config, tensors, expected = _understood(record, tensors, method, backbone, where)
        _compare(tensors, expected | _named(HEAD, {} if head is None else head.state_dict()), where)
    check_room(config, backbone)
    learned: Any
    if record.is_merged:
        learned = PlainTokens.copied(_under(MERGED, tensors), backbone.device)
    else:
        learned = method.make_parameters(config, backbone)
        learned.load_state_dict(_under(LEARNED, tensors))
    if head is not None:
        head.load_state_dict(_under(HEAD, tensors))
    prompt = Prompt(method, config, learned, head)
    prompt.weight = float(record.weight)
    prompt.wrappers = choose_wrappers(record, method, where)
    return prompt.requires_grad_(record.is_trained)


def _versions(record: prompt_folder.IndexEntry, method: LoadedMethod) -> str:
    """Describe the versions of a method that wrote and read a prompt, for a message; empty if they are the same."""
    saved = f"{record.distribution} {record.version}".strip()
    return f" (which was saved with {saved} and is read with {method.origin})" if is_of_another(record, method) else ""


@contextlib.contextmanager
def _advising(record: prompt_folder.IndexEntry, method: LoadedMethod) -> Iterator[None]:
    """Add advice on reading what another version of a method saved if this version cannot."""
    try:
        yield
    except CheckpointError as error:
        if not is_of_another(record, method):
            raise
        advice = install_advice(record.distribution, record.version)
        raise CheckpointError(f"{error}; to read it as it was saved, {advice}") from error.__cause__


def _understood(
    record: prompt_folder.IndexEntry,
    tensors: Mapping[str, Tensor],
    method: LoadedMethod,
    backbone: Backbone,
    where: str,
) -> tuple[MethodConfig, dict[str, Tensor], dict[str, Any]]:
    """Return the config and tensors in the method's current form, and the expected tensors without values."""
    try:
        options, state = upgraded(record, _under(LEARNED, tensors), method)
        others = {key: found for key, found in tensors.items() if not key.startswith(LEARNED)}
        config = method.read_options(options)
        check_weight("weight", record.weight)
        found = _named(LEARNED, state) | others
        return (
            config,
            found,
            _merged(found, config, backbone) if record.is_merged else _trained(method, config, backbone),
        )
    except Exception as error:  # a plugin may fail in any way on options that it did not write
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        raise CheckpointError(f"{where} does not fit its method {record.method!r}: {error}{notes}") from error


def _under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def _named(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `_under`."""
    return {start + key: tensor for key, tensor in tensors.items()}


def _merged(tensors: Mapping[str, Tensor], config: MethodConfig, backbone: Backbone) -> dict[str, Any]:
    """Return the expected tensors of plain tokens of these names, without values."""
    plain = _under(MERGED, tensors)
    if not plain:
        raise ShapeError(f"there is no tensor {MERGED}… for its tokens")
    shapes = stored_shapes(plain, backbone, config.num_virtual_tokens, config.tasks)
    one_gate = {name: (1,) for name in shapes if name.endswith("_gate") and plain[name].shape == (1,)}
    sketch = {name: torch.empty(shape, device="meta") for name, shape in (shapes | one_gate).items()}
    tokens = from_tensors(sketch, backbone) if sketch.keys() == plain.keys() else None
    if tokens is None or tokens.tensors().keys() != plain.keys():
        raise ShapeError(f"the tensors {', '.join(map(repr, plain))} do not belong to one prompt")
    check_virtual_tokens(tokens, backbone, config.num_virtual_tokens, config.tasks, "the merged prompt")
    return _named(MERGED, sketch)


def _trained(method: LoadedMethod, config: MethodConfig, backbone: Backbone) -> dict[str, Any]:
    """Return the tensors of a method's parameters, without values if possible: options may ask for terabytes."""
    try:
        on_meta = dataclasses.replace(backbone, device=torch.device("meta"))
        with torch.device("meta"):
            sketch = method.make_parameters(config, on_meta)
    except Exception:  # its parameters are computed from the model's values, or cannot be created at all
        sketch = method.make_parameters(config, backbone)
    return _named(LEARNED, sketch.state_dict())


def _compare(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Refuse missing or extra tensors, and those with a wrong shape or dtype, or NaN or infinity."""
    for key in sorted({*tensors, *expected}):
        if key not in tensors:
            raise CheckpointError(f"{where}: tensor {key!r} is missing; expected shape {tuple(expected[key].shape)}")
        if key not in expected:
            raise CheckpointError(f"{where}: tensor {key!r} {tuple(tensors[key].shape)} does not belong to it")
        _compare_tensor(key, tensors[key], expected[key], where)


def _compare_tensor(key: str, found: Tensor, expected: Tensor, where: str) -> None:
    if found.shape != expected.shape:
        shapes = f"has shape {tuple(found.shape)}; expected {tuple(expected.shape)}"
        raise CheckpointError(f"{where}: tensor {key!r} {shapes}")
    if expected.is_floating_point():
        check_floating({key: found}, where)
    elif found.dtype != expected.dtype:
        raise CheckpointError(f"{where}: tensor {key!r} has dtype {found.dtype}; expected {expected.dtype}")
