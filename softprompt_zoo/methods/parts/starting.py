"""What a method starts from: the plain tokens of another prompt, if they are where it has its own."""

from collections.abc import Mapping

from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def embeddings_of(tokens: VirtualTokens, method: str) -> Float[Tensor, "... tokens hidden"]:
    """Return the embeddings of a prompt at the input.

    Args:
        tokens: Of the other prompt.
        method: Name of the method that starts, for the message.

    Returns:
        Those of each task, if it has tasks.

    Raises:
        UnsupportedError: If the tokens are keys and values.
    """
    if tokens.at_input is None:
        raise UnsupportedError(f"{method} cannot start from {tokens.where}; give a prompt at the input embeddings")
    return tokens.at_input


def sites_of(tokens: VirtualTokens) -> Mapping[str, SiteTokens]:
    """Return the keys and values of a prompt by site; none of one at the input."""
    return tokens.sites if isinstance(tokens, LayerTokens) else {}
