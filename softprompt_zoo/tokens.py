"""Virtual tokens as values: what `build_virtual_tokens` returns and what `inject` places.

Axes: `tokens` virtual tokens of one prompt, `hidden` the embedding width, `kv_heads` key-value heads,
`head_dim` the width of one head. A *site* is a stack's self-attention (`"encoder"`, `"decoder"`) or the
decoder's attention over the encoder (`"cross"`).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softprompt_zoo.config import LARGEST_WEIGHT
from softprompt_zoo.errors import PluginError, ShapeError, UnsupportedError

if TYPE_CHECKING:
    from softprompt_zoo.backbone import Backbone
    from softprompt_zoo.probe import LayerShape


@dataclasses.dataclass(frozen=True)
class InputTokens:
    """Virtual tokens at the input embeddings."""

    embeddings: Tensor
    """`(tokens, hidden)`, in the scale of the embedding module's output; of a method with tasks
    `(tasks, tokens, hidden)`, from which each row takes its task's."""


@dataclasses.dataclass(frozen=True)
class SiteTokens:
    """Keys and values of the virtual tokens at one site, a tensor per layer."""

    keys: tuple[Tensor | None, ...]
    """Per layer `(kv_heads, tokens, head_dim)`, as attention sees them (after rotary embedding); `None` for
    a layer without tokens, which only gated ones may have."""
    values: tuple[Tensor | None, ...]
    """Per layer `(kv_heads, tokens, head_dim)`, or `None` as in `keys`; some models' values are of another width."""
    gates: tuple[Tensor | None, ...] | None = None
    """Per layer `(heads,)` or `(1,)`: the tokens get a softmax of their own, whose result, times the gate, is
    added to the text's, and they take up no positions. `None`: they share the softmax of the text."""


@dataclasses.dataclass(frozen=True)
class LayerTokens:
    """Virtual tokens at the keys and values of every layer of some sites."""

    sites: Mapping[str, SiteTokens]
    """Site name to its keys and values."""


VirtualTokens = InputTokens | LayerTokens


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where virtual tokens go; the answer of the `inject` hook."""

    tokens: VirtualTokens
    """What is placed. `InputTokens` go in front of the text, `LayerTokens` to their sites."""
    dropout: float = 0.0
    """Probability that an element of a key or value is zeroed, per row, while training."""
    always_visible: bool = False
    """Whether the tokens stay visible in a sliding window that has moved past them."""
    weight: float = 1.0
    """Factor on the share of attention that the tokens get, before all shares are brought to a sum of one; a gate is
    multiplied by it. The host multiplies it by the weight that the user gives the prompt."""
    is_pooled: bool = False
    """Whether a head that reads the text's first token reads the first of these; the host sets it as the user chose."""


def flatten_layers(tokens: SiteTokens) -> Tensor:
    """Lay keys and values out as one row of features per token.

    Args:
        tokens: Keys and values of one site.

    Returns:
        `(tokens, features)`: for each layer its key then its value, heads first within each. With equal
        layers this is the layout of PEFT's `prompt_embeddings`. Gradients flow.
    """
    pairs = [pair for layer in zip(tokens.keys, tokens.values, strict=True) for pair in layer if pair is not None]
    return torch.cat([pair.permute(1, 0, 2).flatten(1) for pair in pairs], dim=1)


def unflatten_layers(flat: Tensor, layers: "Sequence[LayerShape]") -> SiteTokens:
    """Undo `flatten_layers`.

    Args:
        flat: `(tokens, features)`.
        layers: The shape of each layer of the site.

    Returns:
        Keys and values as views of `flat`; gradients flow.

    Raises:
        ShapeError: If the features are not what the layers need.
    """
    expected = sum(layer.features for layer in layers)
    if flat.ndim != 2 or flat.shape[1] != expected:
        raise ShapeError(f"keys and values have shape {tuple(flat.shape)}; expected (tokens, {expected})")
    sizes = {size for layer in layers for size in (layer.key_size, layer.value_size)}
    if len(sizes) == 1:  # the same views, in a few operations instead of three for each of them
        keys, values = flat.unflatten(1, (len(layers), 2, *sizes.pop())).permute(2, 1, 3, 0, 4)
        return SiteTokens(keys.unbind(), values.unbind())
    shapes = [size for layer in layers for size in (layer.key_size, layer.value_size)]
    parts = flat.split([heads * width for heads, width in shapes], dim=1)
    pairs = [part.unflatten(1, shape).permute(1, 0, 2) for part, shape in zip(parts, shapes, strict=True)]
    return SiteTokens(tuple(pairs[0::2]), tuple(pairs[1::2]))


def to_tensors(tokens: VirtualTokens) -> dict[str, Tensor]:
    """Name the tensors of plain virtual tokens for storage.

    Args:
        tokens: Any virtual tokens.

    Returns:
        `{"embeddings": (tokens, hidden)}`; or one `(tokens, features)` tensor per site under its name; of gated
        tokens one under `<site>_<layer>` for each layer that has any, and its gate under `<site>_<layer>_gate`.
    """
    if isinstance(tokens, InputTokens):
        return {"embeddings": tokens.embeddings}
    tensors = {}
    for site, site_tokens in tokens.sites.items():
        if site_tokens.gates is None:
            tensors[site] = flatten_layers(site_tokens)
            continue
        for layer, gate in enumerate(site_tokens.gates):
            if gate is not None:
                one = slice(layer, layer + 1)
                tensors[f"{site}_{layer}"] = flatten_layers(SiteTokens(site_tokens.keys[one], site_tokens.values[one]))
                tensors[f"{site}_{layer}_gate"] = gate
    return tensors


def stored_shapes(
    names: Iterable[str], backbone: "Backbone", num_virtual_tokens: int, num_tasks: int | None
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


def from_tensors(tensors: Mapping[str, Tensor], backbone: "Backbone") -> VirtualTokens:
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


def _gated_site(tensors: Mapping[str, Tensor], site: str, layers: "Sequence[LayerShape]") -> SiteTokens:
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
        _check_gate(gate, layer, f"{site}_{index}_gate", "the merged prompt")
        keys[index], values[index], gates[index] = one.keys[0], one.values[0], gate
    if remaining:
        raise ShapeError(f"there is {min(remaining)!r}; this backbone's site {site!r} has {len(layers)} layers")
    return SiteTokens(tuple(keys), tuple(values), tuple(gates))


def check_virtual_tokens(
    tokens: object, backbone: "Backbone", num_virtual_tokens: int, num_tasks: int | None, source: str
) -> None:
    """Check what a hook returned against the backbone's sizes.

    Args:
        tokens: What the hook returned.
        backbone: Sizes of the model.
        num_virtual_tokens: How many tokens the config asks for.
        num_tasks: How many tasks the config asks for, if the method has tasks.
        source: Plugin and hook, for the message.

    Raises:
        ShapeError: If `tokens` are no virtual tokens, or of a wrong shape or kind of numbers.
    """
    if isinstance(tokens, InputTokens):
        tasks = () if num_tasks is None else (num_tasks,)
        _check_shape(tokens.embeddings, (*tasks, num_virtual_tokens, backbone.hidden_size), "embeddings", source)
        return
    if not isinstance(tokens, LayerTokens):
        raise ShapeError(
            f"{source} returned {type(tokens).__name__}; expected softprompt_zoo.InputTokens or LayerTokens"
        )
    there = ", ".join(map(repr, backbone.layers)) or "none"
    if not isinstance(tokens.sites, Mapping) or not tokens.sites:
        raise ShapeError(
            f"{source} returned LayerTokens of {tokens.sites!r}; expected softprompt_zoo.SiteTokens by site, of which "
            f"this backbone has {there}"
        )
    for site, site_tokens in tokens.sites.items():
        if site not in backbone.layers:
            raise ShapeError(f"{source} returned tokens for the site {site!r}; this backbone has {there}")
        if not isinstance(site_tokens, SiteTokens):
            found = type(site_tokens).__name__
            raise ShapeError(f"{source} returned {found} for the site {site!r}; expected softprompt_zoo.SiteTokens")
        _check_site(site_tokens, site, backbone.layers[site], num_virtual_tokens, source)


def check_finite(tokens: VirtualTokens, source: str) -> None:
    """Refuse start values that are no numbers, which memory that nothing was written to may hold.

    Args:
        tokens: Of the shapes that they should have.
        source: Plugin and hook, for the message.

    Raises:
        PluginError: If one is infinite or not a number.
    """
    if not all(tensor.isfinite().all() for tensor in to_tensors(tokens).values()):
        raise PluginError(f"{source} returned infinity or NaN; have initialize give every parameter its start value")


def check_range(tensors: Mapping[str, Tensor], dtype: torch.dtype, what: str) -> None:
    """Refuse numbers that become infinite in a model's dtype.

    Args:
        tensors: Finite ones, by name.
        dtype: The model's.
        what: What they are of, for the message.

    Raises:
        UnsupportedError: If one is too large.
    """
    largest = torch.finfo(dtype).max
    for name, tensor in tensors.items():
        if torch.finfo(tensor.dtype).max <= largest or tensor.is_meta or not tensor.numel():
            continue
        found = float(tensor.abs().max())
        if found > largest:
            raise UnsupportedError(
                f"{what} has numbers up to {found:.3g} in {name!r}; this model computes in {dtype}, which holds up to "
                f"{largest:.3g}; load the model in a wider dtype, torch.float32 say"
            )


def check_placement(placement: object, source: str) -> None:
    """Check all that a hook returned but the tokens.

    Args:
        placement: What the hook returned.
        source: Plugin and hook, for the message.

    Raises:
        PluginError: If it is no `Placement`, or one with an impossible number.
    """
    if not isinstance(placement, Placement):
        raise PluginError(f"{source} returned {type(placement).__name__}; expected a softprompt_zoo.Placement")
    if not (isinstance(placement.dropout, int | float) and 0 <= placement.dropout < 1):
        raise PluginError(f"{source} returned a dropout of {placement.dropout!r}; expected a number in [0, 1)")
    if not (isinstance(placement.weight, int | float) and 0 <= placement.weight <= LARGEST_WEIGHT):
        allowed = f"a number from 0 to {LARGEST_WEIGHT:.0f}"
        raise PluginError(f"{source} returned a weight of {placement.weight!r}; expected {allowed}")


def _check_site(
    tokens: SiteTokens, site: str, shapes: "Sequence[LayerShape]", num_virtual_tokens: int, source: str
) -> None:
    parts = [("keys", tokens.keys), ("values", tokens.values)]
    for kind, layers in [*parts, *([] if tokens.gates is None else [("gates", tokens.gates)])]:
        if not isinstance(layers, Sequence | Tensor):
            found = type(layers).__name__
            raise ShapeError(f"{source} returned {found} as {kind} of {site!r}; expected a tuple, one for each layer")
        if len(layers) != len(shapes):
            raise ShapeError(f"{source} returned {kind} for {len(layers)} layers of {site!r}; expected {len(shapes)}")
    if tokens.gates is not None and all(gate is None for gate in tokens.gates):
        raise ShapeError(f"{source} returned no gate for any layer of {site!r}; leave the site out")
    for index, shape in enumerate(shapes):
        gate = None if tokens.gates is None else tokens.gates[index]
        is_empty = tokens.gates is not None and gate is None
        for (kind, layers), (heads, width) in zip(parts, (shape.key_size, shape.value_size), strict=True):
            expected = (heads, num_virtual_tokens, width)
            if not is_empty:
                _check_shape(layers[index], expected, f"{kind} of {site!r} layer {index}", source)
            elif layers[index] is not None:
                raise ShapeError(f"{source} returned {kind} of {site!r} layer {index} without a gate; expected None")
        if gate is not None:
            _check_gate(gate, shape, f"the gate of {site!r} layer {index}", source)


def _check_gate(gate: object, shape: "LayerShape", what: str, source: str) -> None:
    if not isinstance(gate, Tensor) or tuple(gate.shape) != (1,):
        _check_shape(gate, (shape.heads,), what, source)


def _check_shape(tensor: object, expected: tuple[int, ...], what: str, source: str) -> None:
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    if shape != expected:
        raise ShapeError(f"{source} returned {what} of shape {shape}; expected {expected}")
    if isinstance(tensor, Tensor) and not tensor.is_floating_point():
        raise ShapeError(f"{source} returned {what} of dtype {tensor.dtype}; expected floating-point numbers")
