"""Converting to and from PEFT's layout of a prefix: for each virtual token, a row of all layers' keys and values."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import BackboneMismatchError, UnsupportedError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.layer_tokens import LayerTokens, flatten_layers
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

TENSOR_KEY = "prompt_embeddings"
CUTTING = ("gemma2", "gemma3_text", "gemma4")
"""Substrings of the model types for which PEFT cuts a prefix to each layer's size (`PeftModel.get_prompt`)."""


@dataclasses.dataclass(frozen=True)
class FlatPrefix:
    """A prefix in PEFT's layout."""

    rows: Float[Tensor, "tokens features"]
    """For each token, all layers' keys and values."""
    layers: int
    """PEFT's number of layers."""
    submodules: int
    """PEFT's number of stacks, by which it splits the layers."""
    shape: LayerShape
    """The sizes that it takes all layers to have."""


def flat_prefix(tokens: VirtualTokens, backbone: Backbone) -> FlatPrefix:
    """Convert a prefix to PEFT's layout.

    Args:
        tokens: Keys and values.
        backbone: Sizes of the model.

    Returns:
        The prefix, with `2 * layers * features` numbers for each token.

    Raises:
        UnsupportedError: If PEFT has no place for it.
    """
    site = backbone.kind.site
    prefix = _at_site_alone(tokens, site, backbone)
    shapes = backbone.layers[site]
    shape = _widest(shapes, backbone)
    if shape is None:
        raise UnsupportedError(
            "PEFT cannot hold keys and values of different sizes, in one layer or in several, as at the site "
            f"{site!r}; keep the prompt in our own format"
        )
    _check_shared(prefix, shapes)
    if not backbone.kind.has_two_texts:
        return FlatPrefix(flatten_layers(_padded(prefix, shape)), len(shapes), 1, shape)
    # With two submodules, PEFT repeats the rows and takes each layer's pair from every second one: rows 4l and
    # 4l + 1 of twice as many layers reach decoder layer l, the rest are never read. With one, whichever class wraps
    # the model, the text's own keys and values would go into the cache of the cross-attention, too.
    pairs = flatten_layers(prefix).unflatten(1, (len(shapes), 2, -1))
    spread = torch.stack([pairs, torch.zeros_like(pairs)], dim=2)
    return FlatPrefix(spread.flatten(1), 2 * len(shapes), 2, shape)


def _at_site_alone(tokens: VirtualTokens, site: str, backbone: Backbone) -> SiteTokens:
    """Return the tokens at a site; refuse tokens at other sites."""
    found = {name: tokens.at(name) for name in backbone.layers if tokens.at(name) is not None}
    own = found.pop(site, None)
    if found or own is None:
        lost = ", ".join(map(repr, found))
        raise UnsupportedError(
            f"PEFT can hold a prefix at the site {site!r} only; this one has {lost}; train with sites=({site!r},), if "
            "the method has that option"
        )
    return own


def read_prefix(tensor: Tensor, config: Mapping[str, Any], backbone: Backbone, path: Path) -> VirtualTokens:
    """Undo `flat_prefix`.

    Args:
        tensor: `(tokens, 2 * layers * features)`.
        config: PEFT's config.
        backbone: Sizes of the model.
        path: PEFT's config file, for messages.

    Returns:
        Keys and values.

    Raises:
        BackboneMismatchError: If it was made for different sizes.
        UnsupportedError: If this model has no place for it, or PEFT itself cannot run it correctly.
    """
    is_seq2seq, site = backbone.kind.has_two_texts, backbone.kind.site
    if site not in backbone.layers:
        raise UnsupportedError(f"{path} holds keys and values, which cannot be reached in this model")
    shapes = backbone.layers[site]
    shape = _widest(shapes, backbone)
    if shape is None:
        raise UnsupportedError(f"{path} cannot hold this model's keys and values, which differ in size from each other")
    layers = config.get("num_layers") or len(shapes)
    _check_rows(tensor, layers, shapes, shape, path, is_seq2seq)
    _check_submodules(config, path, is_seq2seq)
    pairs = tensor.unflatten(1, (2 * layers, shape.kv_heads, shape.head_dim)).permute(1, 2, 0, 3)
    return LayerTokens({site: _site_tokens(pairs, shapes, step=4 if is_seq2seq else 2)})


def _check_submodules(config: Mapping[str, Any], path: Path, is_seq2seq: bool) -> None:
    if is_seq2seq and config.get("num_transformer_submodules", 2) == 1:
        raise UnsupportedError(
            f"{path} has num_transformer_submodules=1, with which PEFT lets tokens see later ones; "
            "export it again with 2"
        )


def _site_tokens(pairs: Float[Tensor, "rows heads tokens size"], shapes: Sequence[LayerShape], step: int) -> SiteTokens:
    """Extract each layer's keys and values from PEFT's rows; each layer starts `step` rows after the previous one."""
    keys, values = [], []
    for layer, own in enumerate(shapes):
        row = step * (layer if own.shared_with is None else own.shared_with)
        heads, size = own.key_size
        keys.append(pairs[row % len(pairs)][:heads, :, :size].contiguous())
        values.append(pairs[(row + 1) % len(pairs)][:heads, :, :size].contiguous())
    return SiteTokens(tuple(keys), tuple(values))


def _check_rows(
    tensor: Tensor, layers: int, shapes: Sequence[LayerShape], shape: LayerShape, path: Path, is_seq2seq: bool
) -> None:
    """Refuse rows `(tokens, 2 * layers * features)` that do not fit a site; `shape` is that of every layer."""
    width = shape.kv_heads * shape.head_dim
    if tensor.shape[1] != 2 * layers * width or (not is_seq2seq and layers != len(shapes)):
        raise BackboneMismatchError(
            f"{path} holds keys and values of {tensor.shape[1]} features in {layers} layers; this model needs "
            f"{2 * len(shapes) * width} in {len(shapes)}; load it onto the model it was made for"
        )


def _widest(shapes: Sequence[LayerShape], backbone: Backbone) -> LayerShape | None:
    """Return the size of PEFT's prefix in every layer; `None` if PEFT cannot hold these layers."""
    if any(shape.key_size != shape.value_size for shape in shapes):
        return None
    sizes = {shape.key_size for shape in shapes}
    if len(sizes) > 1 and not _is_cut(backbone):
        return None
    widest = max(shapes, key=lambda shape: shape.head_dim)  # as PEFT chooses it
    heads, widths = zip(*sizes, strict=True)
    fits = max(heads) <= widest.kv_heads and max(widths) <= widest.head_dim
    return widest if fits else None


def _is_cut(backbone: Backbone) -> bool:
    """Return whether PEFT cuts each layer's part from a prefix of uniform size."""
    return any(part in backbone.model_type for part in CUTTING)


def _padded(tokens: SiteTokens, shape: LayerShape) -> SiteTokens:
    """Pad keys and values `(heads, tokens, size)` with zeros, which PEFT cuts off again."""

    def fill(pair: Tensor | None) -> Tensor | None:
        if pair is None:
            return None
        return functional.pad(pair, (0, shape.head_dim - pair.shape[2], 0, 0, 0, shape.kv_heads - pair.shape[0]))

    return SiteTokens(tuple(map(fill, tokens.keys)), tuple(map(fill, tokens.values)))


def _check_shared(tokens: SiteTokens, shapes: Sequence[LayerShape]) -> None:
    """Refuse a separate prefix in a layer that reads another's keys and values: in PEFT it also reads its prefix."""
    found = tokens.differing_layer(shapes)
    if found is not None:
        layer, source = found
        raise UnsupportedError(
            f"layer {layer} of this model reads the keys and values of layer {source}, in PEFT also those of its "
            "prefix, but the prompt has different ones there; keep the prompt in our own format"
        )
