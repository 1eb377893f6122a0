"""The sizes of an attention layer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """Sizes of one attention layer."""

    kv_heads: int
    """Key-value heads."""
    head_dim: int
    """Width of one head."""
    heads: int = 0
    """Query heads."""
    window: int | None = None
    """Width of its sliding window in positions, if it has one."""
    value_dim: int = 0
    """Width of one head's values if it differs from that of its keys; 0 if it is the same."""

    shared_with: int | None = None
    """Index within the site of the layer whose text keys and values it reuses; `None` if it computes its own."""
    hidden_size: int = dataclasses.field(default=0, compare=False)
    """Width of the hidden states that its attention reads; 0 if they cannot be reached."""

    key_size: tuple[int, int] = dataclasses.field(init=False, repr=False, compare=False)
    """Key-value heads, and the width of a key."""
    value_size: tuple[int, int] = dataclasses.field(init=False, repr=False, compare=False)
    """Key-value heads, and the width of a value."""
    features: int = dataclasses.field(init=False, repr=False, compare=False)
    """Number of values in one virtual token: its key and its value."""

    def __post_init__(self) -> None:
        width = self.value_dim or self.head_dim
        found = {
            "value_dim": 0 if width == self.head_dim else width,
            "key_size": (self.kv_heads, self.head_dim),
            "value_size": (self.kv_heads, width),
            "features": self.kv_heads * (self.head_dim + width),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
