"""Checks whether a prompt was made for a model of the same sizes."""

from collections.abc import Mapping
from typing import Any

from softprompt_zoo.errors import BackboneMismatchError


def check_sizes(sizes: Mapping[str, Any] | None, own: Mapping[str, Any], what: str) -> None:
    """Refuse prompts that were made for a model of different sizes.

    Args:
        sizes: Sizes of the model they were made for, as returned by `Backbone.sizes`; `None` if unknown.
        own: Sizes of the model they are to be used with.
        what: What they are, for the message.

    Raises:
        BackboneMismatchError: If they differ.
    """
    if sizes is None:
        return
    for key, size in own.items():
        if sizes.get(key) != size:
            raise BackboneMismatchError(
                f"{what} was made for a model with {key} {_in_words(sizes.get(key))}; this one has "
                f"{_in_words(size)}; use it with the model it was made for"
            )


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    return ", ".join(
        f"{site}: {len(layers)} layers of (kv_heads, head_dim) {layers[0]}" for site, layers in value.items()
    )
