"""Gated virtual tokens: a softmax of their own beside the text's, added with a trained factor.

They act on the text, take up no positions, and every query sees them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.sites.batch import present, stack
from softprompt_zoo.sites.state import Gated
from softprompt_zoo.tokens.tokens import LayerTokens, Placement, SiteTokens


def gated_parts(combinations: list[list[Placement]], site: str) -> list[Gated]:
    """Stack the gated prompts of all combinations.

    Args:
        combinations: Per combination the placements of its prompts, in order.
        site: The site.

    Returns:
        As many as the combination with the most gated prompts has.
    """
    found: list[list[SiteTokens]] = []
    for group in combinations:  # loops: nested comprehensions could not be compiled
        found.append([])
        for placement in group:
            tokens = _gated(placement, site)
            if tokens is not None:
                found[-1].append(tokens)
    return [
        _stack([own[place] if place < len(own) else None for own in found])
        for place in range(max([len(own) for own in found]))
    ]


def add_gated(
    part: Gated,
    layer: int,
    forward: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    rows: Tensor | None,
    kwargs: dict[str, Any],
) -> Tensor | None:
    """Attend to one gated prompt.

    Args:
        part: The prompt, of every combination.
        layer: The layer.
        forward: The base attention function.
        module: The attention module.
        query: `(rows, heads, length, head_dim)`.
        rows: `(rows,)` index of each row's combination; `None` if all share one.
        kwargs: Arguments of the base function. Not changed.

    Returns:
        What is added to the attention's output `(rows, length, heads, head_dim)`; `None` if there is nothing here.
    """
    keys, values, gates = part.keys[layer], part.values[layer], part.gates[layer]
    if keys is None or values is None or gates is None:
        return None

    def for_rows(tensor: Tensor) -> Tensor:
        return tensor.expand(query.shape[0], *tensor.shape[1:]) if rows is None else tensor[rows]

    mask = None
    if part.present is not None:
        seen = for_rows(part.present)[:, None, None, :].expand(-1, 1, query.shape[2], -1)
        mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
        mask = mask.masked_fill(~seen, torch.finfo(query.dtype).min)
    # No window and no bias: the tokens have no positions. No dropout: the gate starts where every number counts.
    kwargs = {name: value for name, value in kwargs.items() if name not in ("position_bias", "sliding_window")}
    kwargs |= {"is_causal": False, "dropout": 0.0}
    output, _ = forward(module, query, for_rows(keys).to(query), for_rows(values).to(query), mask, **kwargs)
    return for_rows(gates).to(output)[:, None, :, None] * output


def _gated(placement: Placement, site: str) -> SiteTokens | None:
    found = placement.tokens.sites.get(site) if isinstance(placement.tokens, LayerTokens) else None
    if found is None or found.gates is None or placement.weight == 1.0:
        return found if found is not None and found.gates is not None else None
    gates = [None if gate is None else gate * placement.weight for gate in found.gates]
    return dataclasses.replace(found, gates=tuple(gates))


def _stack(prompts: list[SiteTokens | None]) -> Gated:
    lengths = [0 if p is None else next(k.shape[1] for k in p.keys if k is not None) for p in prompts]
    longest = max(lengths)
    template = next(p for p in prompts if p is not None)
    device = next(k.device for k in template.keys if k is not None)
    keys: list[Tensor | None] = []
    values: list[Tensor | None] = []
    gates: list[Tensor | None] = []
    for layer in range(len(template.keys)):
        column = _stack_layer([_layer(prompt, layer) for prompt in prompts], longest)
        keys.append(column[0])
        values.append(column[1])
        gates.append(column[2])
    # A combination without tokens has the gate zero; it must see something, or its softmax is of nothing.
    counts = [length or longest for length in lengths]
    return Gated(tuple(keys), tuple(values), tuple(gates), present(counts, device))


def _layer(prompt: SiteTokens | None, layer: int) -> tuple[Tensor, Tensor, Tensor] | None:
    if prompt is None or prompt.gates is None:
        return None
    key, value, gate = prompt.keys[layer], prompt.values[layer], prompt.gates[layer]
    return None if key is None or value is None or gate is None else (key, value, gate)


def _stack_layer(
    combinations: list[tuple[Tensor, Tensor, Tensor] | None], longest: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    full = [found for found in combinations if found is not None]
    if not full:
        return None, None, None
    heads = max([found[2].shape[0] for found in full])
    keys, values = (
        stack([None if found is None else found[kind] for found in combinations], longest) for kind in (0, 1)
    )
    closed = torch.zeros_like(full[0][2])
    gates = [(closed if found is None else found[2]).expand(heads) for found in combinations]
    return keys, values, torch.stack(gates)
