"""A chat with slots: formatted with the tokenizer's chat template, and split at the slots."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from softprompt_zoo.text.templates import Slot


def chat_pieces(
    tokenizer: Any, messages: list[Mapping[str, Any]], contents: list[list[str | Slot]], values: Mapping[str, str]
) -> list[str | Slot]:
    """Format a chat with markers for the slots, and split it at the markers.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: The chat.
        contents: The pieces of each message's content: texts and slots.
        values: The values of the fields.

    Returns:
        Texts and slots, alternating.

    Raises:
        ValueError: If there is no chat template, or it does not keep every slot once and in order.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer has no chat template ({type(tokenizer).__name__}); set tokenizer.chat_template, or give a "
            "text as template"
        )
    mark = _unused_character("".join([*values.values(), *(message["content"] for message in messages)]))
    chat, slots = _marked(messages, contents, mark)
    wants_answer = messages[-1]["role"] != "assistant"
    whole = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=wants_answer)
    parts = re.split(f"{mark}([0-9]+){mark}", whole)
    _check_kept([*map(int, parts[1::2])], len(slots))
    pieces: list[str | Slot] = [*parts]
    pieces[1::2] = slots
    return pieces


def _check_kept(kept: list[int], count: int) -> None:
    """Refuse a chat that does not have each slot once, in the order of the template."""
    if kept != list(range(count)):
        shown = ", ".join(f"number {number + 1}" for number in kept) or "none"
        raise ValueError(
            "the tokenizer's chat template leaves out, repeats or moves a part of the chat that has slots "
            f"(of {count} slots it keeps {shown}); put the slots into another message"
        )


def _unused_character(text: str) -> str:
    """Find a private-use character that is not in a text: if a field had it, it would be taken for a slot."""
    return next(char for char in map(chr, range(0xE000, 0xF8FF)) if char not in text)


def _marked(
    messages: list[Mapping[str, Any]], contents: list[list[str | Slot]], mark: str
) -> tuple[list[dict[str, Any]], list[Slot]]:
    """Format a chat with numbered markers in place of its slots."""
    numbers = itertools.count()

    def written(content: list[str | Slot]) -> str:
        return "".join(f"{mark}{next(numbers)}{mark}" if isinstance(piece, Slot) else piece for piece in content)

    chat = [{**message, "content": written(content)} for message, content in zip(messages, contents, strict=True)]
    return chat, [piece for content in contents for piece in content if isinstance(piece, Slot)]
