"""Reading a PEFT adapter as a prompt, with `peft_prefixes` and `peft_modules`. Checked against peft 0.21."""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.errors import (
    CheckpointError,
    PluginError,
    UnknownMethodError,
    UnsupportedError,
)
from softprompt_zoo.exchange import PeftPrompt
from softprompt_zoo.files import peft_folder
from softprompt_zoo.files.peft_folder import CONFIG_FILE, TENSOR_FILE
from softprompt_zoo.files.peft_modules import CLASSES_TASK, HEAD_PREFIX, POOLED_TASKS, split_head
from softprompt_zoo.files.peft_prefixes import TENSOR_KEY, read_prefix
from softprompt_zoo.prompt.fits import fitting, fitting_head
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.kinds import PlainTokens, check_virtual_tokens, narrowed
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def read(directory: Path, backbone: Backbone, pools_prompt: bool = False) -> Prompt:
    """Read a PEFT prompt adapter. Nothing is attached.

    Args:
        directory: A folder that PEFT's `save_pretrained` or our export wrote.
        backbone: Sizes of the model.
        pools_prompt: Whether an encoder's classifier reads a virtual token, as in PEFT.

    Returns:
        The prompt.

    Raises:
        CheckpointError: If a file is missing or corrupt, or the adapter is not a prompt.
        BackboneMismatchError: If it was made for a model with different sizes.
        UnknownMethodError: If it needs a method that is not installed.
        UnsupportedError: If it cannot work on this model.
        ShapeError: If the plain tokens that its method has read do not fit its options.
    """
    fields, tensors, origin = peft_folder.read_prompt(directory)
    task_type = fields.get("task_type")
    if pools_prompt:
        _check_pooling(task_type, directory)
    method = _method_for(fields, origin, directory)
    trained: Mapping[str, Tensor] = {}
    try:
        if any(key.startswith(HEAD_PREFIX) for key in tensors):  # PEFT also saved parts of the model
            tensors, trained = split_head(tensors, backbone)
        own = _understood(method, fields, tensors, backbone)
    except (CheckpointError, UnsupportedError) as error:
        raise type(error)(f"{directory}: {error}") from error
    found = own or _plain(fields, tensors, backbone, directory)
    options = {**found.options, **_switched_on(train_head=bool(trained), pools_prompt=pools_prompt)}
    config = _config(method, options, directory)
    if found is own or config.tasks is not None:  # tokens that the host reads fit, but have no tasks
        _check_tokens(found, method, config, backbone)
    learned = _parameters(method, config, found, backbone, directory)
    head = fitting_head(trained, backbone, str(directory), is_whole=False) if trained else None
    prompt = Prompt(method, config, learned, head)
    with torch.no_grad():
        placed = prompt.place(backbone)
    if placed.tokens.at_input is not None:
        _warn_of_pooling(task_type, backbone, pools_prompt)
        _warn_of_scale(backbone)
    return prompt


def _switched_on(**options: bool) -> dict[str, bool]:
    """Return only the options that are on: not every method has them."""
    return {name: is_on for name, is_on in options.items() if is_on}


def _plain(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone, directory: Path) -> PeftPrompt:
    """Return the plain tokens of an adapter that its method leaves to the host."""
    tokens = read_tokens(fields, tensors, backbone, directory)
    return PeftPrompt({"num_virtual_tokens": fields["num_virtual_tokens"], "init": "given"}, tokens=tokens)


def _check_pooling(task_type: str | None, directory: Path) -> None:
    if task_type != CLASSES_TASK:
        raise UnsupportedError(
            f"pools_prompt is True, but {directory} has PEFT's task {task_type!r}: it is only for "
            f"{CLASSES_TASK}, whose heads read one token; leave it out"
        )


def _understood(
    method: LoadedMethod, fields: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone
) -> PeftPrompt | None:
    """Return what the method reads from its own files; `None` if it leaves them to the host."""
    found = method.call("read_peft", fields=fields, tensors=tensors, backbone=backbone)
    return None if found is None else _checked(found, method.describe("read_peft"))


def _checked(found: object, what: str) -> PeftPrompt:
    """Check that a hook returned a prompt, and return it with its tokens narrowed."""
    if not isinstance(found, PeftPrompt):
        raise PluginError(f"{what} returned {type(found).__name__}; expected a softprompt_zoo.PeftPrompt, or None")
    if found.state is None and found.tokens is None:
        raise PluginError(f"{what} returned {found} with neither state nor tokens; expected one of them")
    return found if found.tokens is None else dataclasses.replace(found, tokens=narrowed(found.tokens))


def _config(method: LoadedMethod, options: dict[str, Any], directory: Path) -> MethodConfig:
    try:
        return method.read_options(options)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE} does not fit {method.name!r}: {error}") from error


def _check_tokens(found: PeftPrompt, method: LoadedMethod, config: MethodConfig, backbone: Backbone) -> None:
    if found.tokens is not None and found.state is None:
        count, source = config.num_virtual_tokens, method.describe("read_peft")
        check_virtual_tokens(found.tokens, backbone, count, config.tasks, source)


def _parameters(
    method: LoadedMethod, config: MethodConfig, found: PeftPrompt, backbone: Backbone, directory: Path
) -> nn.Module:
    """Return the method's parameters, or plain tokens if there is nothing else."""
    if found.tokens is not None and found.state is None:
        return PlainTokens.copied(found.tokens.tensors(), backbone.device)
    learned = method.make_parameters(config, backbone)
    with fitting(f"{directory} does not fit this model"):
        learned.load_state_dict(dict(found.state or {}))
    return learned


def _warn_of_pooling(task_type: str | None, backbone: Backbone, pools_prompt: bool) -> None:
    """Warn if PEFT's head reads a virtual token."""
    if task_type in POOLED_TASKS and backbone.kind.has_head_over_input and not pools_prompt:
        advice = "; zoo.load(…, pools_prompt=True) does what PEFT does" if task_type == CLASSES_TASK else ""
        warnings.warn(
            f"PEFT's {task_type} head pools or labels a virtual token; here only the text is pooled, so the "
            f"results differ from PEFT's{advice}",
            stacklevel=4,
        )


def _warn_of_scale(backbone: Backbone) -> None:
    """Warn if PEFT does not scale embeddings that the model scales."""
    if backbone.inside.scales_ids:
        warnings.warn(
            "PEFT passes embeddings to this model that it does not scale, although it scales those of token ids; here "
            "the text is scaled as usual, so the results differ from PEFT's",
            stacklevel=4,
        )


def _method_for(fields: dict[str, Any], origin: peft_folder.Origin | None, directory: Path) -> LoadedMethod:
    peft_type = fields["peft_type"]
    method = registry.reader_of(peft_type)
    if method is not None:
        return method
    if origin is not None:
        registry.lookup_saved(origin.method, origin.distribution, origin.version, str(directory))
    if peft_type in peft_folder.PACKAGES:
        raise UnknownMethodError(
            f"{directory} is a PEFT adapter of type {peft_type!r}, whose method is not installed; run: pip install "
            f"{peft_folder.PACKAGES[peft_type]}"
        )
    if not peft_folder.is_prompt(fields):
        raise CheckpointError(
            f"{directory} is a PEFT adapter of type {peft_type!r}, which is not a prompt of an installed method; "
            "load it with PEFT"
        )
    known = ", ".join(registry.peft_types())
    raise UnsupportedError(f"no installed method loads PEFT's {peft_type}; installed ones load {known}")


def read_tokens(
    fields: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone, directory: Path
) -> VirtualTokens:
    """Extract the plain tokens from a prompt adapter of any type.

    Args:
        fields: PEFT's config.
        tensors: PEFT's tensors.
        backbone: Sizes of the model that the prompt is for.
        directory: The folder they were read from, for messages.

    Returns:
        Its plain tokens.

    Raises:
        CheckpointError: If they do not hold a prompt.
        BackboneMismatchError: If it was made for different sizes.
        UnsupportedError: If PEFT itself cannot run it correctly.
    """
    path = directory / CONFIG_FILE
    count, peft_type = fields.get("num_virtual_tokens"), fields["peft_type"]
    if not isinstance(count, int):
        raise CheckpointError(
            f"{path} is a PEFT adapter of type {peft_type!r}, which is not a prompt; load it with PEFT"
        )
    tensor = _only_tensor(tensors, directory / TENSOR_FILE)
    tokens: VirtualTokens
    rows = [count]
    if tensor.shape[1] == backbone.hidden_size and peft_type not in ("PREFIX_TUNING", "CARTRIDGE"):
        tokens = InputTokens(tensor[:count])
        if backbone.kind.has_two_texts:
            rows.append(2 * count)  # PEFT also keeps rows for the decoder, which it ignores
    else:
        tokens = read_prefix(tensor, fields, backbone, path)
    if tensor.shape[0] not in rows:
        raise CheckpointError(f"{path} says {count} virtual tokens, but its tensor has {tensor.shape[0]}")
    return tokens


def _only_tensor(tensors: Mapping[str, Tensor], path: Path) -> Tensor:
    tensor = tensors.get(TENSOR_KEY)
    if tensor is None or tensor.ndim != 2:
        raise CheckpointError(f"{path} has no tensor {TENSOR_KEY!r} with two axes; it is not a prompt")
    for key in tensors:
        if key != TENSOR_KEY:
            raise UnsupportedError(
                f"{path} carries {key!r} next to the prompt, which no installed method reads; load it with PEFT"
            )
    return tensor
