"""Cuts the outputs of a stack to what the user sees: the text's positions, without virtual ones."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.shapes import Bool, Float
from softprompt_zoo.sites.encoder_states import remember
from softprompt_zoo.sites.layout import Layout

OF_ENCODER = {"last_hidden_state": (1,), "hidden_states": (1,), "attentions": (2, 3), "cross_attentions": (3,)}
"""The outputs of an encoder, and their axes of positions."""
OF_MODEL = {
    "encoder_last_hidden_state": (1,),
    "encoder_hidden_states": (1,),
    "encoder_attentions": (2, 3),
    "cross_attentions": (3,),
}
"""The outputs of an encoder-decoder that have the encoder's positions, and their axes of positions."""


def cut_output(module: Any, output: Any, layout: Layout, pooled: Bool[Tensor, "#rows 1"] | None) -> Any:
    """Cut an encoder's output to the text, and redo its pooling.

    Args:
        module: The encoder, for its pooler.
        output: Its output.
        layout: Where the text was placed.
        pooled: Whether a head gets the first virtual token in place of the text's first.

    Returns:
        An output of the same class.
    """
    cut = cut_states(output, layout)
    if pooled is not None:
        text = cut["last_hidden_state"]
        first = torch.where(pooled, output["last_hidden_state"][:, 0], text[:, 0])
        cut["last_hidden_state"] = torch.cat([first[:, None], text[:, 1:]], dim=1)
    if cut.get("pooler_output") is not None:
        cut["pooler_output"] = _pool(module, cut["last_hidden_state"])
    return cut


def cut_states(output: Any, layout: Layout) -> Any:
    """Cut an encoder's states and attention in an output to the text.

    Args:
        output: Output of the encoder itself, or of an encoder-decoder. Not changed.
        layout: Where the text was placed.

    Returns:
        An output of the same class.
    """
    cut = dict(output)
    for name, dims in _axes(output).items():
        if cut.get(name) is not None:
            cut[name] = text_only(cut[name], layout, dims)
            if name.startswith("encoder_"):
                remember(cut[name], layout, output[name])
    return type(output)(**cut)


def _axes(output: Any) -> dict[str, tuple[int, ...]]:
    return OF_MODEL if any([name.startswith("encoder_") for name in output]) else OF_ENCODER


def text_only(states: Any, layout: Layout, dims: tuple[int, ...]) -> Any:
    """Cut a tensor, or the tensors in nested tuples, to the text.

    Args:
        states: The tensors, with all positions.
        layout: Where the text was placed.
        dims: The axes of positions.

    Returns:
        The same with only the text's positions.
    """
    if isinstance(states, tuple):
        return tuple(text_only(part, layout, dims) for part in states)
    for dim in dims:
        states = layout.text_only(states, dim)
    return states


def _pool(module: Any, states: Float[Tensor, "rows length hidden"]) -> Any:
    activation = part_of(module, "pooler_activation")  # ALBERT's pooler is only the linear layer
    return module.pooler(states) if activation is None else activation(module.pooler(states[:, 0]))
