"""Check the parts of a tokenizer that matter for prompts."""

from collections.abc import Iterator
from typing import Any

from softprompt_zoo.backbone.lookup import config_value
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.findings import Finding


def look_at_tokenizer(base: Base) -> Iterator[Finding]:
    """Find problems of a tokenizer, and what to know about it.

    Args:
        base: The model, with its tokenizer.

    Yields:
        Its tokens, ids and chat template.
    """
    tokenizer = base.tokenizer
    if tokenizer.eos_token_id is None:
        remedy = "answers would never end; set tokenizer.eos_token and save the tokenizer next to the model"
        yield Finding("end of sequence", f"none: {remedy}", is_problem=base.writes_text)
    else:
        yield Finding("end of sequence", f"{tokenizer.eos_token!r} ({tokenizer.eos_token_id})")
    yield _padding(tokenizer)
    yield _sizes(base)
    has_template = tokenizer.chat_template is not None
    known = "there is one; a prompt works best on texts in the form it was trained on, chats or plain text"
    template = known if has_template else "none; texts are plain, written with --template"
    yield Finding("chat template", template)


def _padding(tokenizer: Any) -> Finding:
    if tokenizer.pad_token_id is None:
        return Finding("padding", "none, and no end-of-sequence token to use instead", is_problem=True)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return Finding("padding", "the end-of-sequence token is used; padding is masked, the ends of targets are not")
    return Finding("padding", f"{tokenizer.pad_token!r} ({tokenizer.pad_token_id})")


def _sizes(base: Base) -> Finding:
    tokens, rows = len(base.tokenizer), config_value(base.config.get_text_config(), "vocab_size")
    if rows is not None and tokens > rows:
        text = f"{tokens:,}, more than the {rows:,} embeddings of the model: use the model's own tokenizer"
        return Finding("tokens", f"{text}, or resize the embeddings and save the model", is_problem=True)
    return Finding("tokens", f"{tokens:,}, of {rows:,} embeddings" if rows is not None else f"{tokens:,}")
