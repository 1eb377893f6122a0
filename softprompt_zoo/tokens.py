"""Virtual tokens as values: what `build_virtual_tokens` returns and what `inject` places.

Axes: `tokens` virtual tokens of one prompt, `hidden` the embedding width, `kv_heads` key-value heads,
`head_dim` the width of one head. A *site* is a stack's self-attention (`"encoder"`, `"decoder"`) or the
decoder's attention over the encoder (`"cross"`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softprompt_zoo.errors import ShapeError

if TYPE_CHECKING:
    from softprompt_zoo.backbone import Backbone, LayerShape


@dataclasses.dataclass(frozen=True)
class InputTokens:
    """Virtual tokens at the input embeddings."""

    embeddings: Tensor
    """`(tokens, hidden)`, in the scale of the embedding module's output."""


@dataclasses.dataclass(frozen=True)
class SiteTokens:
    """Keys and values of the virtual tokens at one site, a tensor per layer."""

    keys: tuple[Tensor, ...]
    """Per layer `(kv_heads, tokens, head_dim)`, as attention sees them (after rotary embedding)."""
    values: tuple[Tensor, ...]
    """Per layer `(kv_heads, tokens, head_dim)`."""


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


def flatten_layers(tokens: SiteTokens) -> Tensor:
    """Lay keys and values out as one row of features per token.

    Args:
        tokens: Keys and values of one site.

    Returns:
        `(tokens, features)`: for each layer its key then its value, heads first within each. With equal
        layers this is the layout of PEFT's `prompt_embeddings`. Gradients flow.
    """
    pairs = [pair for layer in zip(tokens.keys, tokens.values, strict=True) for pair in layer]
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
    expected = sum(2 * layer.kv_heads * layer.head_dim for layer in layers)
    if flat.ndim != 2 or flat.shape[1] != expected:
        raise ShapeError(f"keys and values have shape {tuple(flat.shape)}; expected (tokens, {expected})")
    widths = [layer.kv_heads * layer.head_dim for layer in layers for _ in range(2)]
    shapes = [layer for layer in layers for _ in range(2)]
    pairs = [
        part.unflatten(1, (layer.kv_heads, layer.head_dim)).permute(1, 0, 2)
        for part, layer in zip(flat.split(widths, dim=1), shapes, strict=True)
    ]
    return SiteTokens(tuple(pairs[0::2]), tuple(pairs[1::2]))


def to_tensors(tokens: VirtualTokens) -> dict[str, Tensor]:
    """Name the tensors of plain virtual tokens for storage.

    Args:
        tokens: Any virtual tokens.

    Returns:
        `{"embeddings": (tokens, hidden)}`, or one `(tokens, features)` tensor per site under its name.
    """
    if isinstance(tokens, InputTokens):
        return {"embeddings": tokens.embeddings}
    return {site: flatten_layers(site_tokens) for site, site_tokens in tokens.sites.items()}


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
    return LayerTokens({site: unflatten_layers(flat, backbone.layers[site]) for site, flat in tensors.items()})


def check_virtual_tokens(tokens: object, backbone: "Backbone", num_virtual_tokens: int, source: str) -> None:
    """Check what a hook returned against the backbone's sizes.

    Args:
        tokens: What the hook returned.
        backbone: Sizes of the model.
        num_virtual_tokens: How many tokens the config asks for.
        source: Plugin and hook, for the message.

    Raises:
        ShapeError: If `tokens` are no virtual tokens, or of a wrong shape.
    """
    if isinstance(tokens, InputTokens):
        _check_shape(tokens.embeddings, (num_virtual_tokens, backbone.hidden_size), "embeddings", source)
        return
    if not isinstance(tokens, LayerTokens):
        raise ShapeError(
            f"{source} returned {type(tokens).__name__}; expected softprompt_zoo.InputTokens or LayerTokens"
        )
    for site, site_tokens in tokens.sites.items():
        if site not in backbone.layers:
            sites = ", ".join(map(repr, backbone.layers)) or "none"
            raise ShapeError(f"{source} returned tokens for the site {site!r}; this backbone has {sites}")
        shapes = backbone.layers[site]
        for kind, layers in (("keys", site_tokens.keys), ("values", site_tokens.values)):
            if len(layers) != len(shapes):
                raise ShapeError(
                    f"{source} returned {kind} for {len(layers)} layers of {site!r}; expected {len(shapes)}"
                )
            for index, (tensor, shape) in enumerate(zip(layers, shapes, strict=True)):
                expected = (shape.kv_heads, num_virtual_tokens, shape.head_dim)
                _check_shape(tensor, expected, f"{kind} of {site!r} layer {index}", source)


def _check_shape(tensor: object, expected: tuple[int, ...], what: str, source: str) -> None:
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    if shape != expected:
        raise ShapeError(f"{source} returned {what} of shape {shape}; expected {expected}")
