"""The plain tokens of another prompt for a method to start from, if they are at its own place."""

from collections.abc import Mapping

from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def embeddings_of(tokens: VirtualTokens, method: str) -> Float[Tensor, "... tokens hidden"]:
    """Return the embeddings of an input-level prompt.

    Args:
        tokens: The tokens of the other prompt.
        method: Name of the new prompt's method, for the message.

    Returns:
        The embeddings, for each task if there are tasks.

    Raises:
        UnsupportedError: If the tokens are keys and values.
    """
    if tokens.at_input is None:
        raise UnsupportedError(f"{method} cannot start from {tokens.where}; give a prompt at the input embeddings")
    return tokens.at_input


def sites_of(tokens: VirtualTokens) -> Mapping[str, SiteTokens]:
    """Return the keys and values of a prompt by site; empty for an input-level prompt."""
    return tokens.sites if isinstance(tokens, LayerTokens) else {}
