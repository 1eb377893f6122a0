"""The rows' own text, of which a method may make virtual tokens, or other embeddings."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from softprompt_zoo.shapes import Bool, Float, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """What the rows of a batch say, before any prompt."""

    site: str
    """The stack that reads it: `"decoder"` of a causal model, else `"encoder"`."""
    embeddings: Float[Tensor, "rows length hidden"]
    """As the model embeds its tokens."""
    mask: Bool[Tensor, "rows length"]
    """Which positions are a row's text: no padding; where a causal language model is given labels, none that is
    labeled; none that came after the text had been begun, such as a generated token. `text_mask=` says otherwise."""
    positions: Int[Tensor, "#rows length"]
    """Place of each token in its row, from 0; padding is not counted."""
    states: Callable[[], Float[Tensor, "rows length hidden"]]
    """Lets the frozen model read the text alone, without prompts, and returns its last hidden states, without
    gradient; computed once, when it is first called."""
