"""From texts to token ids: a cartridge's document, and the turns of a chat that follow it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MARK = "the-document-stands-here"
"""Placeholder for the document while the template is examined; a word that no template changes."""


def has_template(tokenizer: Any) -> bool:
    """Return whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def around_document(tokenizer: Any) -> tuple[str, str]:
    """Find what the chat template puts before and after the text of a system message.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        Both texts; without a template, an empty text and a blank line.

    Raises:
        ValueError: If the template does not support a system message.
    """
    if not has_template(tokenizer):
        return "", "\n\n"
    before, mark, behind = _render(tokenizer, [{"role": "system", "content": MARK}]).partition(MARK)
    if not mark:
        raise ValueError("the tokenizer's chat template leaves out a system message; use chat=False")
    return before, behind


def turn(tokenizer: Any, question: str) -> str:
    """Format a user's turn that follows the document, up to where the answer begins.

    Args:
        tokenizer: A transformers tokenizer.
        question: What the user says.

    Returns:
        The turn in the chat template's format, without a system message: the cartridge takes its place, and the
        template's default message would be a second one. Without a template, plain text.

    Raises:
        ValueError: If the template does not support a system message.
    """
    if not has_template(tokenizer):
        return f"Question: {question}\nAnswer:"
    before, behind = around_document(tokenizer)
    messages = [{"role": "system", "content": MARK}, {"role": "user", "content": question}]
    rendered = _render(tokenizer, messages, add_generation_prompt=True)
    if not rendered.startswith(before + MARK + behind):
        raise ValueError("the tokenizer's chat template does not put the system message first; use another template")
    return rendered.removeprefix(before + MARK + behind)


def document_ids(
    document: "str | Sequence[int] | Tensor",
    tokenizer: Any,
    *,
    chat: bool,
    vocab_size: int,
    count: int | None = None,
    option: str = "document",
) -> Tensor:
    """Tokenize a document, whole or truncated to the length of a cartridge.

    Args:
        document: Its text, or its token ids.
        tokenizer: A transformers tokenizer, for a text.
        chat: Whether it is put into a system message by the chat template.
        vocab_size: Number of the model's embeddings.
        count: Number of ids: the text is repeated or truncated, the template's text around it is kept whole.
        option: The option's name, for messages.

    Returns:
        `(tokens,)` ids on the CPU.

    Raises:
        TypeError: If the document is neither a text nor ids.
        ValueError: If it has no tokens, ids that the model does not have, no tokenizer, or no room in `count`.
    """
    before: list[int] = []
    behind: list[int] = []
    if isinstance(document, str):
        if tokenizer is None:
            raise ValueError(f"{option} is a text and needs tokenizer=…; pass the model's tokenizer")
        if chat and not has_template(tokenizer):
            raise ValueError("chat=True needs a tokenizer with a chat template; this one has none; use chat=False")
        ids = encode(tokenizer, document.strip() if chat else document)
        if chat:
            before, behind = (encode(tokenizer, part) for part in around_document(tokenizer))
    else:
        if chat:
            raise ValueError(f"chat=True writes a system message around a text; {option} is token ids; use chat=False")
        ids = _given_ids(document, option)
    if not ids:
        raise ValueError(f"{option} has no tokens; give a text that has some")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = next(index for index in ids if not 0 <= index < vocab_size)
        raise ValueError(f"{option} has the token id {wrong}; the model has {vocab_size} embeddings")
    if count is not None:
        room = count - len(before) - len(behind)
        if room < 1:
            raise ValueError(
                f"num_virtual_tokens is {count}, of which the chat template takes {len(before) + len(behind)}; "
                "choose more, or chat=False"
            )
        ids = (ids * -(-room // len(ids)))[:room]
    return torch.tensor([*before, *ids, *behind])


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenize a text without the tokenizer's special tokens; a chat template writes them itself."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _given_ids(document: Any, option: str) -> list[int]:
    ids = document.tolist() if isinstance(document, Tensor) else document
    if not isinstance(ids, list | tuple) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise TypeError(f"{option} is {type(document).__name__}; expected a text, or token ids as a flat list")
    return list(ids)


def _render(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    try:
        rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # whatever the template raises: jinja2's errors share no useful base class
        raise ValueError(f"the tokenizer's chat template refuses a system message ({error}); use chat=False") from error
    return rendered
