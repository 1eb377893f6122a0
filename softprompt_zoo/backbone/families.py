"""The families of models, and what follows from each for prompts."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Family:
    """What models have in common whose text takes the same way through them."""

    site: str
    """The self-attention that all of a user's own text passes, or all of the answer where there are two texts."""
    is_causal: bool = False
    """Whether virtual tokens at the input see nothing after them, and so have keys and values of their own."""
    has_two_texts: bool = False
    """Whether a decoder reads a text of its own, next to the encoder's, where virtual tokens at the input stand."""
    has_head_over_input: bool = False
    """Whether a task head reads states at positions among which virtual tokens at the input stand."""


FAMILIES = {
    "causal": Family("decoder", is_causal=True),
    "encoder": Family("encoder", has_head_over_input=True),
    "encoder_decoder": Family("decoder", has_two_texts=True),
}
"""By the name that `Backbone.family` has for it."""
