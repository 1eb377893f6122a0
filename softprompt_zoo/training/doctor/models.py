"""Find out what works with a model, on a copy without weights on torch's meta device."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from softprompt_zoo.backbone.traits import max_positions
from softprompt_zoo.errors import UnsupportedError, ZooError, one_line
from softprompt_zoo.method import get_method
from softprompt_zoo.methods import DEFAULT
from softprompt_zoo.model.attachment import detach
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.training.amounts import shown_bytes
from softprompt_zoo.training.base import Base, fast_dtype
from softprompt_zoo.training.findings import Finding
from softprompt_zoo.training.memory import StepMemory, estimate, free_memory

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Names in transformers, and in the custom code of many models."""


def hollow(base: Base, attention: str | None = None) -> Any:
    """Build a model without its weights.

    Args:
        base: The model.
        attention: Name of an attention implementation; `None` for the model's default.

    Returns:
        The model on the meta device.

    Raises:
        ValueError: If the model has no such implementation.
        ImportError: If the implementation is not installed.
    """
    config = copy.deepcopy(base.config)
    if attention is not None:
        config._attn_implementation = attention
    kind = vars(transformers).get(base.architecture) or getattr(transformers, base.architecture or "AutoModel")
    with torch.device("meta"):
        model = kind.from_config(config) if kind is transformers.AutoModel else kind(config)
    return model.to(getattr(torch, fast_dtype()))


def look_at_methods(base: Base) -> Iterator[Finding]:
    """Try every installed method on the model, with its example options.

    Args:
        base: The model.

    Yields:
        For each method, whether it fits, and if not, why.
    """
    model = hollow(base)
    for name in registry.candidates():
        problem = _refusal(model, name)
        yield Finding(name, "fits" if problem is None else f"refused: {problem}")


def _refusal(model: Any, name: str) -> str | None:
    try:
        method = get_method(name)
        method(model, **method.example_options[0])
    except (ZooError, TypeError, ValueError) as error:
        return one_line(error)
    detach(model)
    return None


def look_at_attention(base: Base) -> Iterator[Finding]:
    """Try the attention implementations, each with a prompt of the default method.

    Args:
        base: The model.

    Yields:
        For each, whether prompts work with it, and if not, why.
    """
    for name in ATTENTION:
        try:
            problem = _refusal(hollow(base, name), DEFAULT)
        except (ImportError, ValueError) as error:
            problem = one_line(error)
        yield Finding(name, "works" if problem is None else f"refused: {problem}")


def look_at_memory(base: Base, length: int) -> Iterator[Finding]:
    """Estimate the memory for training the default method, and what fits on this machine.

    Args:
        base: The model.
        length: Length of the longest row, in tokens.

    Yields:
        Sizes, and how many rows fit.
    """
    model = hollow(base)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    yield Finding("parameters", f"{numbers:,} in {base.architecture or base.config.model_type}")
    try:
        memory, count = _estimated(base, model, length)
    except (
        UnsupportedError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # a head that needs other inputs
        yield Finding("a step", f"not estimated: {one_line(error)}")
        return
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    room = free_memory(device)
    rows = memory.rows_in(room)
    yield Finding(
        "weights", f"{shown_bytes(memory.weights)} in {fast_dtype()}, of {shown_bytes(room)} free on {device.type}"
    )
    yield Finding("a row", f"{shown_bytes(memory.row)} of activations, for {count} tokens with {DEFAULT}")
    fitting = f"up to {rows:,} such rows at once, estimated without temporary tensors"
    too_large = "not one such row fits into the free memory; use a smaller model or shorter rows, or quantize the model"
    yield Finding("batch size", fitting if rows else too_large, is_problem=not rows)


def _estimated(base: Base, model: Any, length: int) -> tuple[StepMemory, int]:
    method = get_method(DEFAULT)
    model = method(model)
    bound = max_positions(model)
    count = length if bound is None else min(length, bound - int(model.prompts["default"].num_virtual_tokens))
    ids = torch.zeros(1, count, dtype=torch.long, device="meta")
    return estimate(model.train(), {"input_ids": ids, "labels": ids}), count
