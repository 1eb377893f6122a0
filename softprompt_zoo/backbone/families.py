"""The families of models, and what each means for prompts."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Family:
    """Properties shared by models through which text flows in the same way."""

    site: str
    """The self-attention that all of the user's text passes, or, if there are two texts, all of the answer."""
    is_causal: bool = False
    """Whether virtual tokens at the input see nothing after them, so that their keys and values are independent."""
    has_two_texts: bool = False
    """Whether a decoder reads a second text besides the encoder's, which has the virtual tokens at the input."""
    has_head_over_input: bool = False
    """Whether a task head reads states at positions that include virtual tokens at the input."""


FAMILIES = {
    "causal": Family("decoder", is_causal=True),
    "encoder": Family("encoder", has_head_over_input=True),
    "encoder_decoder": Family("decoder", has_two_texts=True),
}
"""By its name in `Backbone.family`."""
