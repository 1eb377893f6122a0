"""Peculiarities of some stacks: their cache, their positions, embeddings that they scale themselves."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.lookup import config_value, has_parts, part_of
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of a forward's argument for its cache of keys and values: from transformers 5.24 on, and before."""


def cache_argument(forward: Callable[..., Any]) -> str:
    """Return the name of a forward's argument for its cache; `""` if it takes none."""
    parameters = inspect.signature(forward).parameters
    found = next((parameters[name] for name in CACHE_ARGUMENTS if name in parameters), None)
    # In XLM and Flaubert, `cache` is a dictionary in a private format.
    return "" if found is None or "dict[" in str(found.annotation) else found.name


def without_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward except its cache."""
    return {name: value for name, value in arguments.items() if name not in CACHE_ARGUMENTS}


def zero_features(module: Any) -> Float[Tensor, "1 channels frames"] | None:
    """Return features of silence for an encoder that reads audio instead of tokens; `None` for any other.

    Args:
        module: The stack's module.

    Returns:
        Zeros `(1, channels, frames)`, with as many frames as the encoder takes.
    """
    if "input_features" not in inspect.signature(type(module).forward).parameters:
        return None
    layers = [child for child in module.children() if isinstance(child, nn.Conv1d)]
    positions = part_of(module, "max_source_positions")
    return _silence(layers, positions) if layers and isinstance(positions, int) else None


def _silence(layers: list[nn.Conv1d], positions: int) -> Float[Tensor, "1 channels frames"]:
    """Return zeros that convolutions shorten to that many positions."""
    frames = positions * math.prod(layer.stride[0] for layer in layers)
    return layers[0].weight.new_zeros(1, layers[0].in_channels, frames)


def max_positions(model: Any) -> int | None:
    """Return the longest sequence that the model's config allows; `None` if it sets no bound."""
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "max_target_positions")
    bound = next((config_value(config, name) for name in names if has_parts(config, name)), None)
    return bound if isinstance(bound, int) and bound > 0 else None


def rotation_limit(config: Any) -> int | None:
    """Return the text length beyond which a model rotates all positions differently: dynamic NTK and longrope.

    Args:
        config: The stack's config, with transformers' `rope_parameters`, one set or one for each type of layer.

    Returns:
        The shortest such length; `None` if a position's rotation does not depend on the text's length.
    """
    limits = [
        rope.get("original_max_position_embeddings") or config.max_position_embeddings
        for rope in _rotations(config)
        if _depends_on_length(rope.get("rope_type"))
    ]
    return min(limits, default=None)


def _rotations(config: Any) -> list[Mapping[str, Any]]:
    """List a config's parameters for rotary positions: one set, or one for each type of layer."""
    given = config_value(config, "rope_parameters")
    return (
        [rope for rope in (given, *given.values()) if isinstance(rope, Mapping)] if isinstance(given, Mapping) else []
    )


def _depends_on_length(rope_type: Any) -> bool:
    return isinstance(rope_type, str) and (rope_type == "longrope" or "dynamic" in rope_type)


def embedding_scales(module: Any, embedding: nn.Module, inputs: dict[str, Any]) -> tuple[float, float]:
    """Return whether a stack with an embedding scale applies it to ids, embeddings, or both.

    Args:
        module: The stack's module, in eval mode.
        embedding: Its embedding table.
        inputs: Arguments of a forward, with ids.

    Returns:
        The factor on the table's rows for ids only, and the factor on given embeddings.

    Raises:
        UnsupportedError: If this cannot be determined.
    """
    scale = float(part_of(module, "embed_scale", 1.0))
    if scale == 1.0 or has_parts(embedding, "embed_scale"):
        return 1.0, 1.0
    expected = module(**inputs).last_hidden_state
    if expected.is_meta:
        raise UnsupportedError(
            f"it scales its embeddings by {scale:g}, and how only shows once its weights are loaded; load them first"
        )
    rows = embedding(inputs["input_ids"])
    for ids_scale in (1.0, scale):
        given = module(**{**inputs, "input_ids": None, "inputs_embeds": rows * ids_scale}).last_hidden_state
        if torch.allclose(given, expected, rtol=0, atol=1e-3 * float(expected.abs().max())):
            return ids_scale, scale / ids_scale
    raise UnsupportedError(f"it treats embeddings differently from ids, even with its factor of {scale:g}")


class Sinusoids:
    """Sinusoids in a module's buffer, as a table of positions whose first row is that of the first token."""

    padding_idx = None

    def __init__(self, module: Any) -> None:
        self._module = module
        self.offset: int = module.padding_idx + 1
        """Number of rows before that of the first token."""

    @property
    def weight(self) -> Float[Tensor, "positions hidden"]:
        """The table's rows, on the module's current device."""
        weights: Tensor = self._module.weights
        return weights

    @property
    def num_embeddings(self) -> int:
        """Number of rows."""
        return self.weight.shape[0]


def find_position_table(module: Any, embedding: nn.Module, bound: int | None) -> nn.Embedding | Sinusoids | None:
    """Find a stack's position table, learned or not, by its size.

    Args:
        module: The stack's module.
        embedding: Its embedding table.
        bound: The longest sequence its config allows; a table has at most a few rows more.

    Returns:
        The table, or `None` if there is none.
    """
    if bound is None:
        return None
    rows: Any = embedding.weight
    widths = {rows.shape[1], config_value(module.config, "hidden_size")}  # a table of angles has a different width
    counts = range(bound, bound + 9)
    for table in _tables(module, embedding):
        shape = table.weight.shape
        if shape != rows.shape and table.num_embeddings in counts and shape[1] in widths:
            return table
    return None


def _tables(module: Any, embedding: nn.Module) -> Iterator[nn.Embedding | Sinusoids]:
    """Yield the tables in a stack, except that of its tokens."""
    for child in module.modules():
        is_table = isinstance(child, nn.Embedding) and child is not embedding
        table = child if is_table else _sinusoids(child)
        if table is not None:
            yield table


def _sinusoids(module: Any) -> Sinusoids | None:
    weights = part_of(module, "weights")
    is_table = isinstance(weights, Tensor) and weights.ndim == 2 and isinstance(part_of(module, "padding_idx"), int)
    return Sinusoids(module) if is_table else None
