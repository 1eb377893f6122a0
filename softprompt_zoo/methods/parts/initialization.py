"""Start values: which words a prompt starts from. Pure functions of a backbone and a tokenizer."""

import os
import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.method_config import GIVEN
from softprompt_zoo.tokens.tokens import LayerTokens

INITS = ("sampled", "text", "labels", "random")

FREQUENT_VOCABULARY = 5000
"""Ids to sample words from. Lester et al. 2021, section 3.2: the 5,000 most common, which tokenizers number first."""


def check_init(init: Any, allowed: Sequence[str], init_text: str | None, labels: Any, tokenizer: Any) -> Any:
    """Check the options that choose the start values against each other, and settle the default.

    Args:
        init: One of `allowed`, or something else that holds a prompt; `None` for the default.
        allowed: The names the method knows.
        init_text: Text for `"text"`.
        labels: Class labels for `"labels"`.
        tokenizer: Needed for both. One that is not needed does no harm.

    Returns:
        The `init` that holds. By default what `init_text` or `labels` are for, and `"sampled"` without them.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If a needed option is missing, one is given that is not used, or `init` is not allowed.
    """
    uses = {"text": ("init_text", init_text), "labels": ("labels", labels)}
    if init is None:
        init = next((name for name, (_, value) in uses.items() if value is not None), "sampled")
    names = ", ".join(map(repr, allowed))
    choices = f"expected one of {names}, the folder of a saved prompt, or a prompt, model.prompts[name]"
    if isinstance(init, str) and init == GIVEN:
        return init
    is_prompt = hasattr(init, "merged_tokens")
    if not is_prompt and not isinstance(init, str | os.PathLike):
        raise TypeError(f"init is {_short(init)} ({type(init).__name__}); {choices}")
    if not is_prompt and init not in allowed and not os.path.isdir(init):
        raise ValueError(f"init is {str(init)!r}; {choices}")
    if init_text is not None and not isinstance(init_text, str):
        raise TypeError(f"init_text is {_short(init_text)} ({type(init_text).__name__}); expected one text")
    if labels is not None and (isinstance(labels, str) or not all(isinstance(label, str) for label in labels)):
        raise TypeError(f"labels is {labels!r}; expected a sequence of texts, one per class")
    needed = uses.pop(init, None) if isinstance(init, str) else None
    if needed is not None and not needed[1]:
        raise ValueError(f"init={init!r} needs {needed[0]}, which is {needed[1]!r}")
    for name, value in uses.values():
        if value is not None:
            shown = "another prompt" if is_prompt else repr(str(init))
            raise ValueError(f"{name} is {value!r}, and init, which is {shown}, does not use it; leave one of them out")
    if needed is not None and tokenizer is not None and not callable(tokenizer):
        raise TypeError(f"tokenizer is {type(tokenizer).__name__}; expected a transformers tokenizer")
    return init


def _short(value: Any) -> str:
    """Write a value on a part of one line, be it a model."""
    return " ".join(reprlib.repr(value).split())


def initial_embeddings(config: Any, backbone: Backbone) -> Tensor:
    """Make the start values that `init` names, in the scale of the embedding module's output.

    Args:
        config: A config with `num_virtual_tokens`, `init`, `init_text`, `labels` and `tokenizer`.
        backbone: Sizes of the model.

    Returns:
        `(tokens, hidden)`: embeddings of sampled words, of a text, or of labels, filled up with sampled words; or
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


def _label_embeddings(labels: Sequence[str], tokenizer: Any, backbone: Backbone) -> Tensor:
    rows = []
    for label in labels:
        length = len(tokenizer(label, add_special_tokens=False)["input_ids"]) if tokenizer else 1
        rows.append(backbone.embed(text_ids(backbone, tokenizer, label, max(length, 1))).mean(dim=0))
    return torch.stack(rows)


def sampled_ids(backbone: Backbone, count: int) -> Tensor:
    """Draw words from the most frequent part of the vocabulary, none twice while they last.

    Args:
        backbone: Sizes of the model.
        count: Words to draw.

    Returns:
        `(count,)` token ids, drawn with torch's global generator.
    """
    population = min(FREQUENT_VOCABULARY, backbone.vocab_size)
    rounds = [torch.randperm(population) for _ in range(-(-count // population))]
    return torch.cat(rounds)[:count].to(backbone.device)


def text_ids(backbone: Backbone, tokenizer: Any, text: str, count: int) -> Tensor:
    """Tokenise a text without special tokens, repeated or cut to a length.

    Args:
        backbone: Sizes of the model.
        tokenizer: A transformers tokenizer.
        text: The text.
        count: Tokens wanted.

    Returns:
        `(count,)` token ids.

    Raises:
        ValueError: If there is no tokenizer, the text has no tokens, or a token the model does not have.
    """
    if tokenizer is None:
        raise ValueError(f"the initial text {text!r} needs tokenizer=…; pass the model's tokenizer")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"the initial text {text!r} has no tokens")
    if max(ids) >= backbone.vocab_size:
        raise ValueError(
            f"the tokenizer gave the id {max(ids)} for {text!r}; the model has {backbone.vocab_size} embeddings"
        )
    repeated = ids * -(-count // len(ids))
    return torch.tensor(repeated[:count], device=backbone.device)


def keys_values_of_words(backbone: Backbone, count: int, text: str | None = None, tokenizer: Any = None) -> LayerTokens:
    """Let the frozen model compute keys and values of real words.

    Args:
        backbone: Sizes of the model.
        count: Words wanted.
        text: The words; `None` to sample frequent ones.
        tokenizer: The model's tokenizer, for `text`.

    Returns:
        Keys and values at every site, without gradient.

    Raises:
        ValueError: If the text cannot be tokenised.
    """
    ids = sampled_ids(backbone, count) if text is None else text_ids(backbone, tokenizer, text, count)
    return backbone.keys_values(ids)
