"""The values that `inspect` finds in one prompt."""

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
        """The word with visible spaces and line breaks; its id if it has no text."""
        return self.word if self.word == f"#{self.id}" else repr(self.word)


@dataclasses.dataclass(frozen=True)
class Norms:
    """L2 norms of one kind of vectors, compared with those of real words. A layer's is the mean over its heads."""

    tokens: Float[Tensor, "layers tokens"]
    """Norms of the virtual tokens; one layer for embeddings. NaN in layers without tokens."""
    words: Float[Tensor, "layers words"]
    """Sorted norms of words: of the whole vocabulary, or of some words that the model reads."""

    @property
    def percentiles(self) -> Float[Tensor, "layers tokens"]:
        """Percentage of the words with a smaller norm."""
        below = torch.searchsorted(self.words, self.tokens.nan_to_num(), right=False)
        return (100 * below / self.words.shape[1]).masked_fill(self.tokens.isnan(), math.nan)


@dataclasses.dataclass(frozen=True)
class PromptInspection:
    """What was found in one prompt. Tensors are float32 on the CPU, without gradient."""

    name: str
    method: str
    num_virtual_tokens: int
    neighbours: tuple[tuple[Neighbour, ...], ...]
    """For each virtual token its nearest words, nearest first; empty for keys and values, which have no words."""
    norms: Mapping[str, Norms]
    """`"embeddings"`, or `"<site> keys"` and `"<site> values"`."""
    similarity: Float[Tensor, "tokens tokens"]
    """Cosines between the virtual tokens; a token's keys and values count as one vector."""
    gates: Mapping[str, Float[Tensor, " layers"]]
    """Mean absolute size of the gates of a gated prompt, by site; 0 in layers without tokens."""
    attention: AttentionMass | None
    """The share of the text's attention that goes to it; `None` if no batch was given."""
