"""The interface between the hooks and each kind of stack."""

from typing import Any

from torch import Tensor

from softprompt_zoo.shapes import Shaped
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.position_table import Past
from softprompt_zoo.sites.reading import read_text
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import CallState


class StackKind:
    """A kind of stack: where virtual tokens go relative to its text, and what its caller sees of them."""

    def read(
        self, stack: Stack, call: Call, kwargs: dict[str, Any], text: Shaped[Tensor, "rows ..."], past: Past
    ) -> tuple[Call, dict[str, Any], Shaped[Tensor, "rows ..."]]:
        """Let prompts read the text and change its embeddings, like `reading.read_text`."""
        return read_text(stack, call, kwargs, text, past)

    def prepare(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Shaped[Tensor, "rows ..."],
        past: Past,
    ) -> tuple[dict[str, Any], CallState]:
        """Insert the prompts of a call.

        Args:
            stack: The stack.
            call: The prompts, for the rows of the text.
            kwargs: The stack's arguments. Not changed.
            text: The text among them, ids `(rows, length)` or embeddings `(rows, length, hidden)`.
            past: Text tokens in its cache.

        Returns:
            The arguments with the text in its final place, and the state for the attention.

        Raises:
            UnsupportedError: If the prompts cannot be inserted with these arguments.
        """
        raise NotImplementedError

    def finish(self, stack: Stack, output: Any, state: CallState, call: Call) -> Any:
        """Return the part of a stack's output that the caller sees.

        Args:
            stack: The stack.
            output: Its `ModelOutput`.
            state: From `prepare`.
            call: The same as there.

        Returns:
            An output of the same class.
        """
        return output
