"""Keys and values as one row of numbers for each virtual token, and back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt_zoo.errors import ShapeError, UnsupportedError
from softprompt_zoo.shapes import Float, Shaped
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.site_tokens import SiteTokens


def flatten_layers(tokens: SiteTokens) -> Float[Tensor, "tokens features"]:
    """Lay keys and values out as one row of features per token.

    Args:
        tokens: Keys and values of one site.

    Returns:
        For each layer its key then its value, heads first within each. With equal
        layers this is the layout of PEFT's `prompt_embeddings`. Gradients flow.

    Raises:
        UnsupportedError: If the tokens have scores, for which this layout has no place.
    """
    if tokens.scores is not None:
        raise UnsupportedError(
            "these tokens have scores, which rows of keys and values alone cannot hold; start from a prompt without "
            "scores, or keep this one in our format"
        )
    pairs = [pair for layer in zip(tokens.keys, tokens.values, strict=True) for pair in layer if pair is not None]
    return torch.cat([pair.permute(1, 0, 2).flatten(1) for pair in pairs], dim=1)


def unflatten_layers(flat: Shaped[Tensor, "..."], layers: Sequence[LayerShape]) -> SiteTokens:
    """Undo `flatten_layers`.

    Args:
        flat: As it lays them out.
        layers: The shape of each layer of the site.

    Returns:
        Keys and values as views of `flat`; gradients flow.

    Raises:
        ShapeError: If the features are not what the layers need.
    """
    expected, shapes = 0, []
    for layer in layers:
        expected += layer.features
        shapes += [layer.key_size, layer.value_size]
    if flat.ndim != 2 or flat.shape[1] != expected:
        raise ShapeError(f"keys and values have shape {tuple(flat.shape)}; expected (tokens, {expected})")
    if len(set(shapes)) == 1:  # the same views, in a few operations instead of three for each of them
        keys, values = flat.unflatten(1, (len(layers), 2, *shapes[0])).permute(2, 1, 3, 0, 4)
        return SiteTokens(keys.unbind(), values.unbind())
    parts = flat.split([heads * width for heads, width in shapes], dim=1)
    pairs = [part.unflatten(1, shape).permute(1, 0, 2) for part, shape in zip(parts, shapes, strict=True)]
    return SiteTokens(tuple(pairs[0::2]), tuple(pairs[1::2]))
