"""The place of one attention module in a model."""

from typing import NamedTuple


class AttentionLayer(NamedTuple):
    """The place of one attention module."""

    name: str
    """`"encoder"`, `"decoder"` or `"cross"`."""
    layer: int
    """Index within the site, from 0."""
