"""Initializing a cartridge from the whole document by solving equations instead of training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import softprompt_zoo as zoo
from softprompt_zoo_cartridge.document import cartridge_of, needed
from softprompt_zoo_cartridge.matching import match_layer
from softprompt_zoo_cartridge.reading import read

PIECE = 256
"""Number of the document's tokens that are read again at once."""


def match_attention(
    model: Any, *, texts: Sequence[Tensor] | None = None, queries: int = 1200, name: str | None = None
) -> None:
    """Give a cartridge keys and values that the model attends to with nearly the results of the whole document.

    No gradient step is taken: see `softprompt_zoo_cartridge.matching`. The model reads the document and then some
    texts; the cartridge is fitted to their queries. With the option `scores`, each token also gets a weight. Continue
    training from there, or use the cartridge right away.

    Args:
        model: A model with a cartridge that has a document. Only the cartridge is changed.
        texts: Token ids of texts that are read after the document, such as `row["input_ids"]` of self-study; by
            default the document itself, piece by piece.
        queries: Number of tokens of these texts whose queries are kept, spread evenly.
        name: The prompt's name; by default the active one.

    Raises:
        ValueError: If several prompts are active and no name is given, the cartridge is as long as its document, or
            the texts have no tokens.
        UnsupportedError: If the prompt is not a cartridge, has no document, or the model's attention cannot be read.
    """
    prompt = cartridge_of(model, name)
    zoo.check_positive_integer("queries", queries)
    learned, count = prompt.learned, prompt.config.num_virtual_tokens
    document = needed(learned.document, "is to match one").ids.to(learned.trained.device)
    if count >= len(document):
        raise ValueError(
            f"the cartridge has {count} tokens and its document {len(document)}; choose a shorter cartridge"
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
