"""PEFT's layout of a prefix, one row of keys and values of all layers for each virtual token, both ways."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone import Backbone
from softprompt_zoo.errors import BackboneMismatchError, UnsupportedError
from softprompt_zoo.tokens import LayerTokens, SiteTokens, VirtualTokens, flatten_layers

TENSOR_KEY = "prompt_embeddings"
SEQ2SEQ = "SEQ_2_SEQ_LM"


def flat_prefix(tokens: LayerTokens, backbone: Backbone) -> tuple[Tensor, int, Any]:
    """Lay a prefix out as PEFT does.

    Args:
        tokens: Keys and values.
        backbone: Sizes of the model.

    Returns:
        `(tokens, 2 * layers * features)`, PEFT's number of layers, and the
        `LayerShape` that it takes all of them to have.

    Raises:
        UnsupportedError: If PEFT has no place for it.
    """
    site = "decoder" if backbone.family == "encoder_decoder" else next(iter(backbone.layers))
    others = [name for name in tokens.sites if name != site]
    if others or site not in tokens.sites:
        lost = ", ".join(map(repr, others or tokens.sites))
        raise UnsupportedError(
            f"PEFT can hold a prefix at the site {site!r} only; this one has {lost}; train with sites=({site!r},)"
        )
    shapes = backbone.layers[site]
    if len({size for shape in shapes for size in (shape.key_size, shape.value_size)}) > 1:
        raise UnsupportedError(
            "PEFT cannot hold keys and values of different sizes, in one layer or in several; keep the prompt in our "
            "own format"
        )
    flat = flatten_layers(tokens.sites[site])
    if backbone.family != "encoder_decoder":
        return flat, len(shapes), shapes[0]
    # PEFT repeats an encoder-decoder's rows and takes each layer's pair from every second one: rows 4l and
    # 4l + 1 of twice as many layers reach decoder layer l, the rest is never looked at.
    pairs = flat.unflatten(1, (len(shapes), 2, -1))
    spread = torch.stack([pairs, torch.zeros_like(pairs)], dim=2)
    return spread.flatten(1), 2 * len(shapes), shapes[0]


def read_prefix(tensor: Tensor, config: dict[str, Any], backbone: Backbone, path: Path) -> VirtualTokens:
    """Undo `flat_prefix`.

    Args:
        tensor: `(tokens, 2 * layers * features)`.
        config: PEFT's config.
        backbone: Sizes of the model.
        path: PEFT's config file, for messages.

    Returns:
        Keys and values.

    Raises:
        BackboneMismatchError: If it was made for other sizes.
        UnsupportedError: If this model has no place for it, or PEFT itself cannot run it right.
    """
    is_seq2seq = backbone.family == "encoder_decoder"
    site = "decoder" if is_seq2seq else next(iter(backbone.layers), "encoder")
    if site not in backbone.layers:
        raise UnsupportedError(f"{path} holds keys and values, which cannot be reached in this model")
    shapes = backbone.layers[site]
    shape = shapes[0]
    layers = config.get("num_layers") or len(shapes)
    if len({size for layer in shapes for size in (layer.key_size, layer.value_size)}) > 1:
        raise UnsupportedError(f"{path} cannot hold this model's keys and values, which differ in size from each other")
    width = shape.kv_heads * shape.head_dim
    if tensor.shape[1] != 2 * layers * width or (not is_seq2seq and layers != len(shapes)):
        raise BackboneMismatchError(
            f"{path} holds keys and values of {tensor.shape[1]} features in {layers} layers; this model needs "
            f"{2 * len(shapes) * width} in {len(shapes)}; load it onto the model it was made for"
        )
    if is_seq2seq and config.get("num_transformer_submodules", 2) == 1:
        raise UnsupportedError(
            f"{path} has num_transformer_submodules=1, with which PEFT lets tokens see later ones; "
            "export it again with 2"
        )
    pairs = tensor.unflatten(1, (2 * layers, shape.kv_heads, shape.head_dim)).permute(1, 2, 0, 3)
    step = 4 if is_seq2seq else 2
    rows = [step * layer % (2 * layers) for layer in range(len(shapes))]
    keys = tuple(pairs[row].contiguous() for row in rows)
    values = tuple(pairs[(row + 1) % (2 * layers)].contiguous() for row in rows)
    return LayerTokens({site: SiteTokens(keys, values)})
