"""Gated virtual tokens: their own softmax next to the text's, added with a trained factor.

They act on the text, take up no positions, and every query sees them.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.shapes import Bool, Float, Int, Shaped
from softprompt_zoo.sites.batch import present, stack_padded
from softprompt_zoo.sites.state import Gated
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.site_tokens import SiteTokens

Queries = Float[Tensor, "rows heads length head_dim"]
Keys = Float[Tensor, "rows kv_heads key_length head_dim"]
Values = Float[Tensor, "rows kv_heads key_length value_dim"]
_Layer = tuple[Float[Tensor, "kv_heads _ head_dim"], Float[Tensor, "kv_heads _ value_dim"], Float[Tensor, " #heads"]]
"""Keys, values and gates of one prompt in one layer."""
Attention = Callable[..., tuple[Float[Tensor, "rows length heads value_dim"], Float[Tensor, "..."] | None]]
"""An attention function of transformers for these; returns its output, and the weights if it has any."""


def gated_parts(combinations: list[list[Placement]], site: str) -> list[Gated]:
    """Stack the gated prompts of all combinations.

    Args:
        combinations: Per combination, the placements of its prompts, in order.
        site: The site.

    Returns:
        As many entries as the largest number of gated prompts in a combination.
    """
    found = [_gated_at(site, placements) for placements in combinations]
    return [_stack(list(prompts)) for prompts in itertools.zip_longest(*found)]


def _gated_at(site: str, placements: list[Placement]) -> list[SiteTokens]:
    """Return the gated prompts of one combination."""
    found = []
    for placement in placements:
        tokens = placement.tokens.gated_at(site)
        if tokens is not None:
            found.append(tokens.weighted(placement.weight))
    return found


def add_gated(
    part: Gated,
    layer: int,
    forward: Attention,
    module: nn.Module,
    query: Queries,
    rows: Int[Tensor, " rows"] | None,
    kwargs: dict[str, Any],
) -> Float[Tensor, "rows length heads value_dim"] | None:
    """Attend to one gated prompt.

    Args:
        part: The prompt in every combination.
        layer: The layer.
        forward: The base attention function.
        module: The attention module.
        query: The queries of the text.
        rows: Index of each row's combination; `None` if all share one.
        kwargs: Arguments of the base function. Not changed.

    Returns:
        The addition to the attention's output; `None` if there is none in this layer.
    """
    own = part.layers[layer]
    if own is None:
        return None
    keys, values, gates = own

    def for_rows(tensor: Shaped[Tensor, "combinations ..."]) -> Shaped[Tensor, "rows ..."]:
        return tensor.expand(query.shape[0], *tensor.shape[1:]) if rows is None else tensor[rows]

    mask = None
    if part.present is not None:
        seen = for_rows(part.present)[:, None, None, :].expand(-1, 1, query.shape[2], -1)
        mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
        mask = mask.masked_fill(~seen, torch.finfo(query.dtype).min)
    # No window and no bias: the tokens have no positions. No dropout: the gate starts where every number matters.
    kwargs = {name: value for name, value in kwargs.items() if name not in ("position_bias", "sliding_window")}
    kwargs |= {"is_causal": False, "dropout": 0.0}
    output, _ = forward(module, query, for_rows(keys).to(query), for_rows(values).to(query), mask, **kwargs)
    return for_rows(gates).to(output)[:, None, :, None] * output


def _stack(prompts: list[SiteTokens | None]) -> Gated:
    template = next(filter(None, prompts))
    lengths = [0 if prompt is None else prompt.count for prompt in prompts]
    longest = max(lengths)
    layers = []
    for layer in range(len(template.keys)):
        layers.append(_stack_layer(_layers(prompts, layer), longest))
    return Gated(tuple(layers), _present(lengths, longest, template.device))


def _present(lengths: list[int], longest: int, device: torch.device) -> Bool[Tensor, "combinations tokens"] | None:
    """Distinguish tokens from padding; a combination without tokens sees padding, as a softmax needs some key."""
    return present([length or longest for length in lengths], device)  # its gate is zero


def _layers(prompts: list[SiteTokens | None], layer: int) -> list[_Layer | None]:
    return [None if prompt is None else prompt.layer(layer) for prompt in prompts]


def _stack_layer(
    combinations: list[_Layer | None], longest: int
) -> (
    tuple[
        Float[Tensor, "combinations kv_heads {longest} head_dim"],
        Float[Tensor, "combinations kv_heads {longest} value_dim"],
        Float[Tensor, " combinations #heads"],
    ]
    | None
):
    template = next(filter(None, combinations), None)
    if template is None:
        return None
    nothing = None, None, torch.zeros_like(template[2])
    keys, values, gates = zip(*[found or nothing for found in combinations], strict=True)
    return stack_padded(keys, longest), stack_padded(values, longest), torch.stack(torch.broadcast_tensors(*gates))
