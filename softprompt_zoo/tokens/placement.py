"""Where virtual tokens go."""

import dataclasses

from torch import Tensor

from softprompt_zoo.shapes import Bool
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where virtual tokens go; the return value of the `inject` hook."""

    tokens: VirtualTokens
    """The tokens to place. `InputTokens` go in front of the text, `LayerTokens` to their sites."""
    dropout: float = 0.0
    """Probability of zeroing an element of a key or value, per row, during training. Tokens at the input embeddings
    have their own keys and values, in every layer, only in a causal stack; elsewhere, it is refused for them."""
    always_visible: bool = False
    """Whether the tokens stay visible in a sliding window that has moved past them."""
    weight: float = 1.0
    """Factor on the share of attention that the tokens get, before all shares are normalized to a sum of one; gates are
    multiplied by it. The host multiplies it by the weight that the user gives the prompt."""
    mask: Bool[Tensor, "#rows tokens"] | None = None
    """Which of the tokens each row of the text sees (with one row: all rows); `None` if every row sees all. For keys
    and values that share the softmax of the text."""
    is_pooled: bool = False
    """Whether a head that reads the text's first token reads the first of these instead; set by the host."""

    @property
    def options(self) -> dict[str, float | bool]:
        """The options that prompts merged into one must share."""
        return {"dropout": self.dropout, "always_visible": self.always_visible, "is_pooled": self.is_pooled}
