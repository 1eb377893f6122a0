"""One layer's prompt: the keys and values of each row's combination, with its dropout."""

import torch
from torch import Tensor

from softprompt_zoo.sites.state import SiteState


def layer_prompt(prompt: SiteState, rows: Tensor | None, layer: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the keys and values that a layer's rows see of their prompts.

    Args:
        prompt: What the site shows.
        rows: `(rows,)` index of each row's combination; `None` if all share one.
        layer: The layer.
        count: Rows of the batch.

    Returns:
        Each `(count, kv_heads, tokens, head_dim)`.
    """
    keys, values = rows_of(prompt.keys[layer], rows, count), rows_of(prompt.values[layer], rows, count)
    if prompt.dropout is None:
        return keys, values
    probability = rows_of(prompt.dropout, rows, count)[:, None, :, None]
    return drop(keys, probability), drop(values, probability)


def rows_of(tensor: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """Spread a tensor with an entry per combination over `count` rows."""
    return tensor.expand(count, *tensor.shape[1:]) if rows is None else tensor[rows]


def drop(tensor: Tensor, probability: Tensor) -> Tensor:
    """Zero elements with the given probabilities, and scale the others so that the mean stays."""
    keep = torch.rand_like(tensor) >= probability.to(tensor.dtype)
    return tensor * keep / (1 - probability.to(tensor.dtype))
