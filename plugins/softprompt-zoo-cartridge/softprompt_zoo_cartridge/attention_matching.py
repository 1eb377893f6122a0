"""A cartridge's start from the whole document, solved instead of trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import softprompt_zoo as zoo
from softprompt_zoo_cartridge.document import cartridge_of, needed
from softprompt_zoo_cartridge.matching import match_layer
from softprompt_zoo_cartridge.reading import read

PIECE = 256
"""Tokens of the document that are read again at a time."""


def match_attention(
    model: Any, *, texts: Sequence[Tensor] | None = None, queries: int = 1200, name: str | None = None
) -> None:
    """Give a cartridge keys and values in which the model finds nearly what it finds in the whole document.

    No gradient step is taken: see `softprompt_zoo_cartridge.matching`. The model reads the document, and behind it some
    texts, whose queries are what the cartridge is made to answer. With the option `scores` each token gets a weight as
    well. Train on from there, or use it as it is.

    Args:
        model: A model with a cartridge that has a document. Only the cartridge is changed.
        texts: Token ids of texts that are read behind the document, such as `row["input_ids"]` of self-study; by
            default the document itself, a piece at a time.
        queries: Tokens of these texts whose queries are kept, spread evenly.
        name: The prompt's name; by default the active one.

    Raises:
        ValueError: If several prompts are active and none is named, the cartridge is as long as its document, or the
            texts have no tokens.
        UnsupportedError: If the prompt is no cartridge, has no document, or the model's attention cannot be read.
    """
    prompt = cartridge_of(model, name)
    zoo.check_positive_integer("queries", queries)
    learned, count = prompt.learned, prompt.config.num_virtual_tokens
    document = needed(learned.document, "is to match one").ids.to(learned.trained.device)
    if count >= len(document):
        raise ValueError(
            f"the cartridge has {count} tokens and its document {len(document)}; there is nothing to leave out"
        )
    chosen = document.split(PIECE) if texts is None else [torch.as_tensor(ids, device=document.device) for ids in texts]
    total = sum(map(len, chosen))
    if not total:
        raise ValueError("texts has no tokens; give token ids of at least one text, or leave it out")
    every = max(1, total // queries)
    found = read(model, document, chosen, count, every)
    options = {"frozen": prompt.config.num_frozen_tokens, "weighed": prompt.config.scores}
    learned.take(
        [
            match_layer(keys.float(), values.float(), asked.float(), count, scale=scale, **options)
            for keys, values, asked, scale in zip(found.keys, found.values, found.queries, found.scales, strict=True)
        ]
    )
