"""Virtual tokens made of their named tensors again, for the model whose sizes they have."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import ShapeError
from softprompt_zoo.prompt.token_checks import check_gate
from softprompt_zoo.tokens.tokens import (
    InputTokens,
    LayerShape,
    LayerTokens,
    SiteTokens,
    VirtualTokens,
    unflatten_layers,
)


def stored_shapes(
    names: Iterable[str], backbone: Backbone, num_virtual_tokens: int, num_tasks: int | None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that `to_tensors` gives the tensors of these names.

    Args:
        names: Names of tensors; those that it does not give are left out.
        backbone: Sizes of the model.
        num_virtual_tokens: Virtual tokens of the prompt.
        num_tasks: Its tasks; `None` if it has none.

    Returns:
        Name to shape; of gates with a number per head.
    """
    count, tasks = num_virtual_tokens, () if num_tasks is None else (num_tasks,)
    shapes: dict[str, tuple[int, ...]] = {"embeddings": (*tasks, count, backbone.hidden_size)}
    for site, layers in backbone.layers.items():
        shapes[site] = (count, sum(layer.features for layer in layers))
        for index, layer in enumerate(layers):
            shapes[f"{site}_{index}"] = (count, layer.features)
            shapes[f"{site}_{index}_gate"] = (layer.heads,)
    return {name: shapes[name] for name in names if name in shapes}


def from_tensors(tensors: Mapping[str, Tensor], backbone: Backbone) -> VirtualTokens:
    """Undo `to_tensors`.

    Args:
        tensors: Named tensors.
        backbone: Sizes of the model the tokens are for.

    Returns:
        The virtual tokens; gradients flow to `tensors`.

    Raises:
        ShapeError: If the shapes are not the backbone's.
    """
    if "embeddings" in tensors:
        return InputTokens(tensors["embeddings"])
    sites = {}
    for site, layers in backbone.layers.items():
        if site in tensors:
            sites[site] = unflatten_layers(tensors[site], layers)
        elif any(name.startswith(f"{site}_") for name in tensors):
            sites[site] = _gated_site(tensors, site, layers)
    unused = [name for name in tensors if name.split("_")[0] not in sites]
    if unused:
        there = ", ".join(map(repr, backbone.layers))
        raise ShapeError(f"there are tokens for the site {unused[0]!r}; this backbone has {there}")
    return LayerTokens(sites)


def _gated_site(tensors: Mapping[str, Tensor], site: str, layers: Sequence[LayerShape]) -> SiteTokens:
    keys: list[Tensor | None] = [None] * len(layers)
    values: list[Tensor | None] = [None] * len(layers)
    gates: list[Tensor | None] = [None] * len(layers)
    remaining = {name for name in tensors if name.startswith(f"{site}_")}
    for index, layer in enumerate(layers):
        names = {f"{site}_{index}", f"{site}_{index}_gate"}
        if not names & remaining:
            continue
        if not names <= remaining:
            raise ShapeError(f"there is no {min(names - remaining)!r} beside {min(names & remaining)!r}")
        remaining -= names
        one = unflatten_layers(tensors[f"{site}_{index}"], [layer])
        gate = tensors[f"{site}_{index}_gate"]
        check_gate(gate, layer, f"{site}_{index}_gate", "the merged prompt")
        keys[index], values[index], gates[index] = one.keys[0], one.values[0], gate
    if remaining:
        raise ShapeError(f"there is {min(remaining)!r}; this backbone's site {site!r} has {len(layers)} layers")
    return SiteTokens(tuple(keys), tuple(values), tuple(gates))
