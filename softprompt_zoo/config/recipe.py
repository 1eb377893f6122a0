"""Training settings that have been seen to work."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings that are known to work, and their source."""

    learning_rate: float
    """Peak learning rate."""
    steps: int
    """Optimizer steps."""
    batch_size: int = 8
    """Rows per optimizer step."""
    warmup_steps: int = 5
    """Steps of linear warm-up."""
    schedule: str = "linear"
    """Name of a transformers learning-rate schedule."""
    weight_decay: float = 0.0
    """The optimizer's weight decay."""
    optimizer: str = "adamw_torch"
    """Name of a transformers optimizer; by default torch's AdamW."""
    source: str = ""
    """Where the numbers come from."""
