"""Runs a model in eval mode, on a chosen attention function, and restores it afterwards."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.lookup import has_parts
from softprompt_zoo.backbone.quantized import keep_unpacked


def attention_configs(model: PreTrainedModel) -> list[Any]:
    """List the distinct config objects that choose the attention function of the model's modules."""
    configs = [module.__dict__.get("config") for module in model.modules()]
    unique = {id(config): config for config in configs}
    return [config for config in unique.values() if has_parts(config, "_attn_implementation_internal")]


@contextlib.contextmanager
def attention_kept(configs: Sequence[Any]) -> Iterator[None]:
    """Restore the attention functions that configs choose on exit."""
    before = [config._attn_implementation_internal for config in configs]
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


@contextlib.contextmanager
def switched_off(model: nn.Module, flag: str) -> Iterator[None]:
    """Switch a flag off on the modules that have it on, and back on afterwards.

    Args:
        model: The model or stack.
        flag: `"training"` or `"gradient_checkpointing"`.

    Yields:
        Nothing.
    """
    modules = [module for module in model.modules() if module.__dict__.get(flag)]
    for module in modules:
        setattr(module, flag, False)
    try:
        yield
    finally:
        for module in modules:
            setattr(module, flag, True)


@contextlib.contextmanager
def eval_mode(modules: Sequence[PreTrainedModel], attention: str | None = None) -> Iterator[None]:
    """Put models or stacks into eval mode; restore their mode and attention functions afterwards.

    Args:
        modules: The models.
        attention: The name of the attention function to run them on; by default their own.

    Yields:
        Nothing.
    """
    configs = [config for module in modules for config in attention_configs(module)]
    with attention_kept(configs), _mode_kept(modules):
        _run_on(configs, attention)
        for module in modules:
            keep_unpacked(module.eval())
        yield


@contextlib.contextmanager
def _mode_kept(modules: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Restore on exit which parts of modules were in training mode."""
    training = [(child, child.training) for module in modules for child in module.modules()]
    try:
        yield
    finally:
        for child, mode in training:
            if child.training != mode:
                child.training = mode


def _run_on(configs: Sequence[Any], attention: str | None) -> None:
    """Switch configs to another attention function, if one is named."""
    if attention is not None:
        for config in configs:
            config._attn_implementation_internal = attention
