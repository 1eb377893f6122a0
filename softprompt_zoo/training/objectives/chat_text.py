"""Chats as a model reads them: its own chat template, and where in the text the assistant speaks."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softprompt_zoo.errors import DataError, UnsupportedError
from softprompt_zoo.examples.chats import ASSISTANT, Chat

if TYPE_CHECKING:
    from softprompt_zoo.training.base import Base

Span = tuple[int, int]
"""First character, and the one after the last."""


class ChatText:
    """Writes chats with the tokenizer's chat template."""

    def __init__(self, base: "Base", instruction: str | None = None) -> None:
        if not base.tokenizer.chat_template or not base.tokenizer.is_fast:
            raise UnsupportedError(
                f"the tokenizer of {base.name} has no chat template, or none of the tokenizers library, so messages "
                "cannot be written as it reads them; choose a model that was trained on chats, or give input and target"
            )
        self.tokenizer, self._instruction = base.tokenizer, instruction

    def question(self, chat: Chat) -> str:
        """Write a chat up to where the assistant is to speak."""
        return self._render(chat, len(chat.messages), asks=True)

    def spans(self, chat: Chat) -> tuple[str, list[Span]]:
        """Write a chat.

        Args:
            chat: The chat.

        Returns:
            The text, and where the assistant speaks in it: what it says and the mark that ends it, but neither the
            mark that begins it, nor white space behind it.

        Raises:
            DataError: If the template cannot write it, or writes earlier messages otherwise once later ones follow.
        """
        whole = self._render(chat, len(chat.messages))
        return whole, [self._span(chat, turn, whole) for turn in chat.turns]

    def _span(self, chat: Chat, turn: int, whole: str) -> Span:
        """Return where a turn is: behind the text that asks for it, up to the end of the text with it."""
        if turn == 0:
            raise DataError(
                f"{chat.place}: message 1 is of the role {ASSISTANT!r}, so nothing asks for it; put a user's message "
                "in front, or drop it"
            )
        before, after = self._render(chat, turn, asks=True), self._render(chat, turn + 1)
        said = _said_in(after[len(before) :], whole[len(before) :])
        if not (whole.startswith(before) and after.startswith(before) and self._is_all(chat.messages[turn], said)):
            raise DataError(
                f"{chat.place}: the model's chat template writes message {turn + 1}, or one before it, otherwise once "
                "later ones follow, so its tokens cannot be told apart; leave out of the messages what the template "
                "drops, such as thoughts, or choose another model"
            )
        return len(before), len(before) + len(self._spoken(said))

    def _is_all(self, message: Mapping[str, Any], said: str) -> bool:
        """Return whether a turn has all that is in its message, and more than the mark that ends it."""
        marks = self.tokenizer.all_special_tokens
        return message.get("content", "").strip() in said and bool(functools.reduce(_without, marks, said).strip())

    def _spoken(self, turn: str) -> str:
        """Cut off the white space behind the mark that ends a turn, which nobody writes."""
        bare = turn.rstrip()
        return bare if bare.endswith(tuple(self.tokenizer.all_special_tokens)) else turn

    def _render(self, chat: Chat, count: int, *, asks: bool = False) -> str:
        messages = _instructed(chat.messages[:count], self._instruction)
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=list(chat.tools) or None, add_generation_prompt=asks, tokenize=False
            )
        except Exception as error:  # whatever a template of the model's own raises
            raise DataError(
                f"{chat.place or 'a chat'}: the model's chat template does not take it: "
                f"{' '.join(str(error).split())}; change the messages, or choose another model"
            ) from error
        return text


def _said_in(alone: str, followed: str) -> str:
    """Return how a turn is written where others follow; some templates put an empty thought before the last one."""
    return next(alone[start:] for start in range(len(alone) + 1) if followed.startswith(alone[start:]))


def _without(text: str, mark: str) -> str:
    return text.replace(mark, "")


def _instructed(messages: Sequence[Mapping[str, Any]], instruction: str | None) -> list[dict[str, Any]]:
    """Put an instruction into the system's message, of which there may be one."""
    given = [{"content": "", **message} for message in messages]  # a call of tools may say nothing besides
    if instruction is None:
        return given
    has_system = bool(given) and given[0]["role"] == "system"
    text = f"{instruction}\n\n{given[0]['content']}" if has_system else instruction
    return [{"role": "system", "content": text}, *given[has_system:]]
