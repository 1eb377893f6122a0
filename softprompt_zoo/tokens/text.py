"""The rows' own text, from which a method may build virtual tokens or new embeddings."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from softprompt_zoo.shapes import Bool, Float, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """The text in the rows of a batch, before any prompt."""

    site: str
    """The stack that reads it: `"decoder"` in a causal model, else `"encoder"`."""
    embeddings: Float[Tensor, "rows length hidden"]
    """The tokens as embedded by the model."""
    mask: Bool[Tensor, "rows length"]
    """Which positions are a row's text: not padding; if a causal language model gets labels, not labeled ones; and none
    that were added after the text started, such as generated tokens. `text_mask=` overrides this."""
    positions: Int[Tensor, "#rows length"]
    """Position of each token in its row, from 0; padding is not counted."""
    states: Callable[[], Float[Tensor, "rows length hidden"]]
    """Runs the frozen model on just the text, without prompts, and returns its last hidden states, without gradient;
    computed once, on the first call."""
