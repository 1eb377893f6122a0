"""Chats: rows of messages, with tools that the assistant may call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.fields import items, present, task_of, text
from softprompt_zoo.examples.row import Row, listed, short

FIELD, TOOLS = "messages", "tools"
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Chat:
    """One row of data."""

    messages: tuple[Mapping[str, Any], ...]
    """Messages, each with a role, and a content or `tool_calls`."""
    tools: tuple[Any, ...] = ()
    """Descriptions of functions, as chat templates accept them."""
    place: str = field(default="", compare=False, repr=False)
    """File and line, for messages."""
    task: str | None = field(default=None, compare=False)
    """The task that the row belongs to, if a file has several."""

    @property
    def turns(self) -> list[int]:
        """Indices of the assistant's messages."""
        return [index for index, message in enumerate(self.messages) if message["role"] == ASSISTANT]


class Chats:
    """A form of data: rows of messages."""

    read = "messages, or the name given as input_field, and tools"

    def __init__(self, first: Row, input_field: str | None, target_field: str | None) -> None:
        """Find the field with the messages.

        Args:
            first: The first row.
            input_field: The field with the messages; `messages` unless given.
            target_field: Not allowed: the assistant's messages are the targets.

        Raises:
            DataError: If a target field is given.
        """
        if target_field is not None:
            raise DataError(
                f"{first.place}: target_field is {target_field!r}, but a chat's targets are the assistant's messages; "
                "leave --target-field out"
            )
        self._name = input_field or FIELD

    def example(self, row: Row) -> Chat:
        """Read a row.

        Raises:
            DataError: If it is not a chat, or has no message from the assistant.
        """
        given = items(row, self._name, present(row, self._name, self.read))
        messages = tuple(_message(row, f"message {number}", message) for number, message in enumerate(given, 1))
        chat = Chat(messages, _tools(row), row.place, task_of(row))
        if not chat.turns:
            roles = listed(dict.fromkeys(message["role"] for message in messages))
            raise DataError(
                f"{row.place}: field {self._name!r} has no message with the role {ASSISTANT!r}, so there is nothing "
                f"to learn; roles found: {roles}; add an answer or drop the row"
            )
        return chat


def _message(row: Row, what: str, message: object) -> Mapping[str, Any]:
    """Check a message; drop keys without a value, which come from tables."""
    if not isinstance(message, Mapping):
        raise DataError(f"{row.place}: {what} is {short(message)}; it must be an object with a role and a content")
    given = {key: value for key, value in message.items() if value is not None}
    text(row, f"the role of {what}", given.get("role"))
    if not given.get("tool_calls"):
        text(row, f"the content of {what}", given.get("content"))
    return given


def _tools(row: Row) -> tuple[Any, ...]:
    given = row.fields.get(TOOLS)
    return () if given is None or given == [] else tuple(items(row, TOOLS, given))
