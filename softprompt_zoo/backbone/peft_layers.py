"""The modules that PEFT injects into a model, such as a LoRA around a linear layer, and their plain equivalents."""

import copy
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch
import transformers
from torch import nn
from transformers import utils
from transformers.integrations import peft as integration

from softprompt_zoo.backbone.lookup import config_value, has_parts, part_of
from softprompt_zoo.errors import UnsupportedError

AROUND = ("base_layer", "original_module", "token_adapter")
"""Components that PEFT inserts into parameter names of a module that it wraps."""


def model_inside(model: Any) -> Any:
    """Return the transformers model inside a `PeftModel`; any other model unchanged.

    Args:
        model: The model that the user passed.

    Returns:
        The model that prompts go into.

    Raises:
        UnsupportedError: If it is a `PeftModel` with one of PEFT's own prompts.
    """
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        return model
    for name, config in model.peft_config.items():
        if config_value(config, "is_prompt_learning", False):
            raise UnsupportedError(
                f"the PeftModel's adapter {name!r} is one of PEFT's own prompts ({config.peft_type.value}), which "
                "wraps the model's forward; save it and load the directory with zoo.load onto the model without it"
            )
    return model.get_base_model()


def check_peft_version(what: str) -> None:
    """Refuse to put an adapter on a model if transformers does not accept the installed PEFT.

    Args:
        what: The adapter, for the message.

    Raises:
        UnsupportedError: If transformers requires a later PEFT.
    """
    needed = integration.MIN_PEFT_VERSION
    try:
        utils.check_peft_version(min_version=needed)
    except ValueError as error:
        raise UnsupportedError(
            f"{what} cannot be put on a model: for adapters, transformers {transformers.__version__} requires PEFT "
            f"{needed} or later, and PEFT {metadata.version('peft')} is installed; install compatible versions, "
            'pip install "softprompt-zoo[peft]"'
        ) from error


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Find the modules that PEFT injected into a model.

    Args:
        model: Any model; its prompts are skipped.

    Yields:
        Each module with its name.
    """
    kinds = _kinds()
    if not kinds:
        return
    for name, module in model.named_modules():
        if isinstance(module, kinds) and not name.startswith("prompts."):
            yield name, module


def adapter_names(model: Any) -> list[str]:
    """List the adapters injected into a model."""
    return list(part_of(model, "peft_config") or ())


def has_adapters(model: nn.Module) -> bool:
    """Return whether adapters are in a model's layers, including merged ones that were not unloaded."""
    return any(True for _ in adapter_layers(model))


def acting_adapters(model: nn.Module) -> list[str]:
    """List a model's active adapters: neither disabled nor merged."""
    found: dict[str, None] = {}
    for _, layer in adapter_layers(model):
        if not layer.disable_adapters:
            found |= dict.fromkeys(name for name in layer.active_adapters if name not in layer.merged_adapters)
    return list(found)


def adapter_parameters(model: nn.Module, adapter: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that belong to one adapter, or to any, with their names in the model."""
    for prefix, layer in adapter_layers(model):
        for name, parameter in layer.named_parameters():
            owner = _owner(layer, name)
            if owner is not None and adapter in (None, owner):
                yield f"{prefix}.{name}", parameter


def _owner(layer: Any, name: str) -> str | None:
    """Return the adapter that a parameter of a layer belongs to; `None` if it is the layer's own."""
    part = next((part for part in layer.adapter_layer_names if f"{name}.".startswith(f"{part}.")), None)
    return None if part is None else name.removeprefix(f"{part}.").partition(".")[0]


def original_name(name: str) -> str:
    """Return the name that a parameter of the model has without an adapter around its module."""
    return ".".join(part for part in name.split(".") if part not in AROUND)


@torch.no_grad()
def plain_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a module without the modules that PEFT injected, with the values that they currently produce.

    Args:
        module: The module. Not changed.
        dtype: The dtype of the copy.

    Returns:
        The copy. Disabled adapters are left out.

    Raises:
        UnsupportedError: If PEFT cannot merge an adapter in it.
    """
    try:
        copied = copy.deepcopy(module).to(dtype)
        kinds = _kinds()
        return _without(copied, kinds) if kinds else copied
    except NotImplementedError as error:
        raise UnsupportedError(
            f"the task head, {type(module).__name__}, has a PEFT adapter that cannot be merged into a copy of it; "
            "leave the head out of the adapter's target_modules, or choose train_head=False"
        ) from error


def _kinds() -> tuple[type, ...]:
    """Return the base classes of PEFT's modules; none if PEFT has not been imported."""
    tuners, other = sys.modules.get("peft.tuners.tuners_utils"), sys.modules.get("peft.utils.other")
    if tuners is None or other is None:
        return ()
    return tuners.BaseTunerLayer, other.AuxiliaryTrainingWrapper


def _without(module: nn.Module, kinds: tuple[type, ...]) -> nn.Module:
    """Unwrap a copy in place."""
    if isinstance(module, kinds):
        return _without(_inside(module), kinds)
    for name, child in module.named_children():
        setattr(module, name, _without(child, kinds))
    return module


def _inside(layer: Any) -> nn.Module:
    """Return the current plain equivalent of one of PEFT's modules, as its forward chooses."""
    if has_parts(layer, "original_module"):
        return _inside_of_whole(layer)
    if layer.disable_adapters == layer.merged:
        (layer.unmerge if layer.merged else layer.merge)()
    found: nn.Module = layer.get_base_layer()
    return found


def _inside_of_whole(layer: Any) -> nn.Module:
    """Return the current equivalent of a fully trained module: itself, or the original one."""
    is_off = layer.disable_adapters or not layer.active_adapters
    found: nn.Module
    found = layer.original_module if is_off else layer.unload_and_optionally_merge_module(True, False, None)
    return found
