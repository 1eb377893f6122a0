"""Chats as text: written with the model's chat template, with the spans in which the assistant speaks."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softprompt_zoo.errors import DataError, UnsupportedError, one_line
from softprompt_zoo.examples.chats import ASSISTANT, Chat

if TYPE_CHECKING:
    from softprompt_zoo.training.base import Base

Span = tuple[int, int]
"""Start and end in characters, the end exclusive."""


class ChatText:
    """Renders chats with the tokenizer's chat template."""

    def __init__(self, base: "Base", instruction: str | None = None) -> None:
        if not base.tokenizer.chat_template or not base.tokenizer.is_fast:
            raise UnsupportedError(
                f"the tokenizer of {base.name} has no chat template, or is not a fast one, so messages cannot be "
                "rendered as the model expects; choose a model that was trained on chats, or give input and target"
            )
        self.tokenizer, self._instruction = base.tokenizer, instruction

    def question(self, chat: Chat) -> str:
        """Render a chat up to the point where the assistant answers."""
        return self._render(chat, len(chat.messages), asks=True)

    def spans(self, chat: Chat) -> tuple[str, list[Span]]:
        """Render a chat.

        Args:
            chat: The chat.

        Returns:
            The text, and the spans in which the assistant speaks: what it says and the end-of-turn token, but neither
            the opening of the turn nor white space after it.

        Raises:
            DataError: If the template cannot render it, or renders earlier messages differently when later ones follow.
        """
        whole = self._render(chat, len(chat.messages))
        return whole, [self._span(chat, turn, whole) for turn in chat.turns]

    def _span(self, chat: Chat, turn: int, whole: str) -> Span:
        """Return the span of a turn: from the end of the generation prompt to the end of the turn."""
        if turn == 0:
            raise DataError(
                f"{chat.place}: message 1 is of the role {ASSISTANT!r}, so it answers nothing; put a user's message "
                "before it, or drop it"
            )
        before, after = self._render(chat, turn, asks=True), self._render(chat, turn + 1)
        said = _said_in(after[len(before) :], whole[len(before) :])
        if not (whole.startswith(before) and after.startswith(before) and self._is_all(chat.messages[turn], said)):
            raise DataError(
                f"{chat.place}: the model's chat template renders message {turn + 1}, or one before it, differently "
                "when later ones follow, so its tokens cannot be identified; remove from the messages what the "
                "template drops, such as thoughts, or choose another model"
            )
        return len(before), len(before) + len(self._spoken(said))

    def _is_all(self, message: Mapping[str, Any], said: str) -> bool:
        """Return whether a turn has the whole content of its message, and more than special tokens."""
        marks = self.tokenizer.all_special_tokens
        return message.get("content", "").strip() in said and bool(functools.reduce(_without, marks, said).strip())

    def _spoken(self, turn: str) -> str:
        """Cut off the white space after the end-of-turn token, which the model never generates."""
        bare = turn.rstrip()
        return bare if bare.endswith(tuple(self.tokenizer.all_special_tokens)) else turn

    def _render(self, chat: Chat, count: int, *, asks: bool = False) -> str:
        messages = _instructed(chat.messages[:count], self._instruction)
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=list(chat.tools) or None, add_generation_prompt=asks, tokenize=False
            )
        except Exception as error:  # a model's template may raise anything
            raise DataError(
                f"{chat.place or 'a chat'}: the model's chat template does not accept it: "
                f"{one_line(error)}; change the messages, or choose another model"
            ) from error
        return text


def _said_in(alone: str, followed: str) -> str:
    """Return a turn as rendered when others follow; some templates put an empty thought before the last one."""
    return next(alone[start:] for start in range(len(alone) + 1) if followed.startswith(alone[start:]))


def _without(text: str, mark: str) -> str:
    return text.replace(mark, "")


def _instructed(messages: Sequence[Mapping[str, Any]], instruction: str | None) -> list[dict[str, Any]]:
    """Put an instruction into the system message, which is created if there is none."""
    given = [{"content": "", **message} for message in messages]  # a message with tool calls may have no content
    if instruction is None:
        return given
    has_system = bool(given) and given[0]["role"] == "system"
    text = f"{instruction}\n\n{given[0]['content']}" if has_system else instruction
    return [{"role": "system", "content": text}, *given[has_system:]]
