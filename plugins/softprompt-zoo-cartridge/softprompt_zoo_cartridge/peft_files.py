"""PEFT's CARTRIDGE: the fields of its config, and checking them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

import softprompt_zoo as zoo

KEY = "prompt_embeddings"
"""PEFT's name of its only tensor."""


def cartridge_fields(config: Any, layers: Sequence[Any], takes_cache: bool) -> dict[str, Any]:
    """Return the fields of PEFT's config.

    Args:
        config: The cartridge's options.
        layers: Shapes of the model's layers.
        takes_cache: Whether the model takes `past_key_values`.

    Returns:
        The fields.

    Raises:
        UnsupportedError: If PEFT cannot hold the cartridge.
    """
    shape = layers[0]
    if len({size for layer in layers for size in (layer.key_size, layer.value_size)}) > 1:
        raise zoo.UnsupportedError(
            "PEFT cannot hold keys and values of different sizes, in one layer or in several; keep the cartridge in "
            "our own format"
        )
    if not takes_cache:
        raise zoo.UnsupportedError(
            "PEFT passes a cartridge to the model as past_key_values, which this model does not accept; keep it in our "
            "own format"
        )
    if config.always_visible and any(layer.window for layer in layers):
        raise zoo.UnsupportedError(
            "PEFT lets a cartridge slide out of the window, which always_visible=True forbids; "
            "train with always_visible=False"
        )
    return {
        "peft_type": "CARTRIDGE",
        "num_virtual_tokens": config.num_virtual_tokens,
        "num_frozen_tokens": config.num_frozen_tokens,
        "token_dim": shape.kv_heads * shape.head_dim,
        "num_attention_heads": shape.kv_heads,
        "num_layers": len(layers),
        "num_transformer_submodules": 1,
    }


def frozen_rows(fields: Mapping[str, Any], flat: Tensor, layers: Sequence[Any]) -> int:
    """Return how many rows of a file are frozen.

    Args:
        fields: PEFT's config.
        flat: `(tokens, features)`, the tensor.
        layers: Shapes of the model's layers.

    Returns:
        The number of frozen rows.

    Raises:
        CheckpointError: If config and tensor have different numbers of tokens.
        UnsupportedError: If no row would be trained.
        BackboneMismatchError: If they were made for another model.
    """
    count = fields.get("num_virtual_tokens")
    frozen = fields.get("num_frozen_tokens", 1)  # PEFT's default
    if count != len(flat):
        raise zoo.CheckpointError(f"the adapter's config says {count!r} virtual tokens, but its tensor has {len(flat)}")
    if isinstance(frozen, bool) or not isinstance(frozen, int) or not 0 <= frozen < count:
        raise zoo.UnsupportedError(
            f"the adapter's config has num_frozen_tokens {frozen!r} of {count} virtual tokens, which leaves none to "
            "train; write a smaller number into adapter_config.json, which does not change the outputs"
        )
    features = sum(layer.features for layer in layers)
    if flat.shape[1] != features or fields.get("num_layers", len(layers)) != len(layers):
        raise zoo.BackboneMismatchError(
            f"the adapter holds {flat.shape[1]} features in {fields.get('num_layers')} layers; this model needs "
            f"{features} in {len(layers)}; load it onto the model it was made for"
        )
    return frozen
