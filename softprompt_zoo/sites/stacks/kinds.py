"""The kinds of stacks, by the family of the model and the side."""

from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.stacks.causal import Causal
from softprompt_zoo.sites.stacks.decoder import Decoder
from softprompt_zoo.sites.stacks.encoder import Encoder, EncoderInFront, SoundEncoder
from softprompt_zoo.sites.stacks.kind import StackKind

KINDS: dict[tuple[str, str], StackKind] = {
    ("causal", "decoder"): Causal(),
    ("encoder", "encoder"): Encoder(),
    ("encoder_decoder", "encoder"): EncoderInFront(),
    ("encoder_decoder", "decoder"): Decoder(),
}
"""By the backbone's family and the stack's name."""
_SOUND = SoundEncoder()


def kind_of(family: str, stack: Stack) -> StackKind:
    """Return the kind of a stack.

    Args:
        family: The backbone's family.
        stack: The stack.

    Returns:
        Its kind.
    """
    return _SOUND if stack.is_audio_encoder else KINDS[family, stack.name]
