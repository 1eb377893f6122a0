"""Initial values: the words that a prompt starts from. Pure functions of a backbone and a tokenizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.shapes import Float, Int
from softprompt_zoo.tokens.layer_tokens import LayerTokens

INITS = ("sampled", "text", "labels", "random")

FREQUENT_VOCABULARY = 5000
"""Ids to sample words from. Lester et al. 2021, section 3.2: the 5,000 most common, which have the lowest ids."""


def initial_embeddings(config: Any, backbone: Backbone) -> Float[Tensor, "tokens hidden"]:
    """Compute the initial values named by `init`, on the scale of the embedding module's output.

    Args:
        config: A config with `num_virtual_tokens`, `init`, `init_text`, `labels` and `tokenizer`.
        backbone: Sizes of the model.

    Returns:
        Embeddings of sampled words, of a text, or of labels, padded with sampled words; or
        numbers uniform in ±0.5 (Lester et al. 2021, section 2.1).

    Raises:
        ValueError: If a text or a label has no tokens, or there is no tokenizer for it.
    """
    count: int = config.num_virtual_tokens
    if config.init == "random":
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        return torch.empty(count, backbone.hidden_size, dtype=dtype, device=backbone.device).uniform_(-0.5, 0.5)
    if config.init == "text":
        return backbone.embed(text_ids(backbone, config.tokenizer, str(config.init_text), count))
    if config.init == "labels":
        labels = _label_embeddings(config.labels or (), config.tokenizer, backbone)
        return torch.cat([labels, backbone.embed(sampled_ids(backbone, count))])[:count]
    return backbone.embed(sampled_ids(backbone, count))


def _label_embeddings(labels: Sequence[str], tokenizer: Any, backbone: Backbone) -> Float[Tensor, "labels hidden"]:
    rows = []
    for label in labels:
        length = len(tokenizer(label, add_special_tokens=False)["input_ids"]) if tokenizer else 1
        rows.append(backbone.embed(text_ids(backbone, tokenizer, label, max(length, 1))).mean(dim=0))
    return torch.stack(rows)


def sampled_ids(backbone: Backbone, count: int) -> Int[Tensor, " {count}"]:
    """Draw words from the most frequent part of the vocabulary, without replacement as long as there are enough.

    Args:
        backbone: Sizes of the model.
        count: Number of words to draw.

    Returns:
        Token ids, drawn with torch's global generator.
    """
    population = min(FREQUENT_VOCABULARY, backbone.vocab_size)
    rounds = [torch.randperm(population) for _ in range(-(-count // population))]
    return torch.cat(rounds)[:count].to(backbone.device)


def text_ids(backbone: Backbone, tokenizer: Any, text: str, count: int) -> Int[Tensor, " {count}"]:
    """Tokenize a text without special tokens, repeated or cut to a length.

    Args:
        backbone: Sizes of the model.
        tokenizer: A transformers tokenizer.
        text: The text.
        count: Number of tokens.

    Returns:
        Token ids.

    Raises:
        ValueError: If there is no tokenizer, or the text has no tokens or one that the model does not have.
    """
    if tokenizer is None:
        raise ValueError(f"the initial text {text!r} needs tokenizer=…; pass the model's tokenizer")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"the initial text {text!r} has no tokens")
    if max(ids) >= backbone.vocab_size:
        raise ValueError(
            f"the tokenizer gave the id {max(ids)} for {text!r}, but the model has {backbone.vocab_size} embeddings"
        )
    repeated = ids * -(-count // len(ids))
    return torch.tensor(repeated[:count], device=backbone.device)


def keys_values_of_words(backbone: Backbone, count: int, text: str | None = None, tokenizer: Any = None) -> LayerTokens:
    """Compute keys and values of real words with the frozen model.

    Args:
        backbone: Sizes of the model.
        count: Number of words.
        text: The words; `None` to sample frequent ones.
        tokenizer: The model's tokenizer, for `text`.

    Returns:
        Keys and values at every site, without gradient.

    Raises:
        ValueError: If the text cannot be tokenized.
    """
    ids = sampled_ids(backbone, count) if text is None else text_ids(backbone, tokenizer, text, count)
    return backbone.keys_values(ids)
