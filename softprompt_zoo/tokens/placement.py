"""Where virtual tokens go."""

import dataclasses

from torch import Tensor

from softprompt_zoo.shapes import Bool
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where virtual tokens go; the answer of the `inject` hook."""

    tokens: VirtualTokens
    """What is placed. `InputTokens` go in front of the text, `LayerTokens` to their sites."""
    dropout: float = 0.0
    """Probability that an element of a key or value is zeroed, per row, while training. Tokens at the input embeddings
    have keys and values of their own in a causal stack, in every layer; elsewhere it is refused for them."""
    always_visible: bool = False
    """Whether the tokens stay visible in a sliding window that has moved past them."""
    weight: float = 1.0
    """Factor on the share of attention that the tokens get, before all shares are brought to a sum of one; a gate is
    multiplied by it. The host multiplies it by the weight that the user gives the prompt."""
    mask: Bool[Tensor, "#rows tokens"] | None = None
    """Which of the tokens each row of the text sees, or all of its rows; `None` if every row sees all. For keys and
    values that share the softmax of the text."""
    is_pooled: bool = False
    """Whether a head that reads the text's first token reads the first of these; the host sets it as the user chose."""

    @property
    def options(self) -> dict[str, float | bool]:
        """What prompts that become one must have in common."""
        return {"dropout": self.dropout, "always_visible": self.always_visible, "is_pooled": self.is_pooled}
