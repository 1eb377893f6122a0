"""The relative position bias that a decoder like T5's gives its prompt."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.shapes import Float, Int
from softprompt_zoo.sites.stack import Stack


def relative_bias(
    stack: Stack, positions: Int[Tensor, "#rows length"], tokens: int
) -> tuple[Float[Tensor, "#rows heads length {tokens}"], ...] | None:
    """Compute the relative position bias of a decoder prompt, like that of real tokens at positions `0 … tokens - 1`.

    Args:
        stack: A decoder.
        positions: Positions of the queries, including the prompt.
        tokens: Virtual tokens.

    Returns:
        One bias per layer, or `None` if the stack has none.
    """
    modules = stack.attentions[stack.name]
    owners = [module if _has_relative_bias(module) else None for module in modules]
    if owners[0] is None:
        return None
    biases: list[Tensor] = []
    for owner in owners:  # a layer without a table uses the bias of the previous one, as T5's all use the first one's
        biases.append(biases[-1] if owner is None else _bias_of(owner, positions, tokens))
    return tuple(biases)


def _bias_of(
    owner: Any, positions: Int[Tensor, "#rows length"], tokens: int
) -> Float[Tensor, "#rows heads length {tokens}"]:
    distances = torch.arange(tokens, device=positions.device) - positions[..., None]
    options = {
        "bidirectional": not owner.is_decoder,
        "num_buckets": owner.relative_attention_num_buckets,
        "max_distance": owner.relative_attention_max_distance,
    }
    wanted = inspect.signature(owner._relative_position_bucket).parameters
    buckets = owner._relative_position_bucket(distances, **{name: options[name] for name in options if name in wanted})
    bias: Tensor = owner.relative_attention_bias(buckets)
    return bias.permute(0, 3, 1, 2)


def _has_relative_bias(module: nn.Module) -> bool:
    return hasattr(module, "_relative_position_bucket") and hasattr(module, "relative_attention_bias")
