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
    """Width of one head's values, where it is another than that of its keys; 0 where it is the same."""

    shared_with: int | None = None
    """The layer whose keys and values of the text it reads, where it makes none of its own; counted within its site."""

    def __post_init__(self) -> None:
        if self.value_dim == self.head_dim:
            object.__setattr__(self, "value_dim", 0)

    @property
    def key_size(self) -> tuple[int, int]:
        """Key-value heads, and the width of a key."""
        return self.kv_heads, self.head_dim

    @property
    def value_size(self) -> tuple[int, int]:
        """Key-value heads, and the width of a value."""
        return self.kv_heads, self.value_dim or self.head_dim

    @property
    def features(self) -> int:
        """Numbers of one virtual token, its key and its value."""
        return self.kv_heads * (self.head_dim + (self.value_dim or self.head_dim))
