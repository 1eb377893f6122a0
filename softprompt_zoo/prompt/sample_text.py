"""A few words for prompts that read the text, when there is no text yet."""

import functools

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.shapes import Bool
from softprompt_zoo.tokens.text import Text

LENGTH = 3
MORE_PADDING = 2


def sample_text(backbone: Backbone) -> Text:
    """Create a text of one row.

    Args:
        backbone: Sizes of the model, and its embedding of words.

    Returns:
        A few words from the middle of the vocabulary; special tokens are at its ends.
    """
    return _text(backbone, torch.ones(1, LENGTH, dtype=torch.bool, device=backbone.device))


def sample_batch(backbone: Backbone) -> Text:
    """Create a text of two rows: that of `sample_text`, followed by padding, and a longer one.

    Args:
        backbone: Sizes of the model, and its embedding of words.

    Returns:
        The text.
    """
    columns = torch.arange(LENGTH + MORE_PADDING, device=backbone.device)
    return _text(backbone, torch.stack([columns < LENGTH, columns >= 0]))


def _text(backbone: Backbone, mask: Bool[Tensor, "rows length"]) -> Text:
    rows, length = mask.shape
    words = backbone.vocab_size // 2 + torch.arange(rows * length, device=backbone.device).reshape(rows, length)
    embeddings = backbone.embed(words % backbone.vocab_size)
    positions = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
    states = functools.cache(functools.partial(backbone.states, embeddings, mask, positions))
    return Text("decoder" if backbone.kind.is_causal else "encoder", embeddings, mask, positions, states)
