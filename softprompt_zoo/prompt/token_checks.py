"""Checks of what a hook returned, and of the numbers of virtual tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import LARGEST_WEIGHT
from softprompt_zoo.errors import PluginError, ShapeError, UnsupportedError
from softprompt_zoo.tokens.tokens import (
    InputTokens,
    LayerShape,
    LayerTokens,
    Placement,
    SiteTokens,
    VirtualTokens,
    to_tensors,
)


def check_virtual_tokens(
    tokens: object, backbone: Backbone, num_virtual_tokens: int, num_tasks: int | None, source: str
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
        found = float(tensor.detach().abs().max())
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


def check_gate(gate: object, shape: LayerShape, what: str, source: str) -> None:
    """Check the gate of one layer.

    Args:
        gate: `(heads,)` or `(1,)`.
        shape: Sizes of the layer.
        what: The gate's name, for the message.
        source: Plugin and hook, for the message.

    Raises:
        ShapeError: If it is of another shape or kind of numbers.
    """
    if not isinstance(gate, Tensor) or tuple(gate.shape) != (1,):
        _check_shape(gate, (shape.heads,), what, source)


def _check_site(
    tokens: SiteTokens, site: str, shapes: Sequence[LayerShape], num_virtual_tokens: int, source: str
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
            check_gate(gate, shape, f"the gate of {site!r} layer {index}", source)


def _check_shape(tensor: object, expected: tuple[int, ...], what: str, source: str) -> None:
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    if shape != expected:
        raise ShapeError(f"{source} returned {what} of shape {shape}; expected {expected}")
    if isinstance(tensor, Tensor) and not tensor.is_floating_point():
        raise ShapeError(f"{source} returned {what} of dtype {tensor.dtype}; expected floating-point numbers")
