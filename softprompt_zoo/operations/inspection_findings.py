"""What `inspect` finds in one prompt, as values."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from softprompt_zoo.operations.attention_mass import AttentionMass
from softprompt_zoo.shapes import Float


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A word near a virtual token."""

    id: int
    word: str
    """Its text; `#id` without a tokenizer."""
    cosine: float
    """Cosine of the angle between the word's embedding and the token."""
    distance: float
    """L2 norm of their difference."""

    @property
    def shown(self) -> str:
        """The word with its spaces and ends of line to be seen; one without text is its id."""
        return self.word if self.word == f"#{self.id}" else repr(self.word)


@dataclasses.dataclass(frozen=True)
class Norms:
    """L2 norms of one kind of vectors, compared with those of real words. A layer's is the mean over its heads."""

    tokens: Float[Tensor, "layers tokens"]
    """Norms of the virtual tokens; one layer for embeddings. NaN in layers without tokens."""
    words: Float[Tensor, "layers words"]
    """Norms of words, sorted: of the whole vocabulary, or of some words that the model read."""

    @property
    def percentiles(self) -> Float[Tensor, "layers tokens"]:
        """Percent of the words with a smaller norm."""
        below = torch.searchsorted(self.words, self.tokens.nan_to_num(), right=False)
        return (100 * below / self.words.shape[1]).masked_fill(self.tokens.isnan(), math.nan)


@dataclasses.dataclass(frozen=True)
class PromptInspection:
    """What is inside one prompt. Tensors are float32 on the CPU, without gradient."""

    name: str
    method: str
    num_virtual_tokens: int
    neighbours: tuple[tuple[Neighbour, ...], ...]
    """For each virtual token its nearest words, the nearest first; empty for keys and values, which have no words."""
    norms: Mapping[str, Norms]
    """`"embeddings"`, or `"<site> keys"` and `"<site> values"`."""
    similarity: Float[Tensor, "tokens tokens"]
    """Cosines between the virtual tokens; of keys and values all of a token's in one vector."""
    gates: Mapping[str, Float[Tensor, " layers"]]
    """By site the mean size of the gates of a gated prompt; 0 in layers without tokens."""
    attention: AttentionMass | None
    """The part of the text's attention that goes to it; `None` if no batch was given."""
