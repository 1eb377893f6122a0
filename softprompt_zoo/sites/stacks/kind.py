"""What the hooks ask of each kind of stack."""

from typing import Any

from torch import Tensor

from softprompt_zoo.shapes import Shaped
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.position_table import Past
from softprompt_zoo.sites.reading import read_text
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import CallState


class StackKind:
    """A kind of stack: where virtual tokens stand next to its text, and what of them its caller sees."""

    def read(
        self, stack: Stack, call: Call, kwargs: dict[str, Any], text: Shaped[Tensor, "rows ..."], past: Past
    ) -> tuple[Call, dict[str, Any], Shaped[Tensor, "rows ..."]]:
        """Let prompts read the text, and change its embeddings; as `reading.read_text`."""
        return read_text(stack, call, kwargs, text, past)

    def prepare(
        self,
        stack: Stack,
        call: Call,
        kwargs: dict[str, Any],
        text: Shaped[Tensor, "rows ..."],
        past: Past,
    ) -> tuple[dict[str, Any], CallState]:
        """Bring the prompts of a call in.

        Args:
            stack: The stack.
            call: The prompts, for the rows of the text.
            kwargs: The stack's arguments. Not changed.
            text: What it reads of them, ids `(rows, length)` or embeddings `(rows, length, hidden)`.
            past: Tokens of text in its cache.

        Returns:
            The arguments with the text in its place, and the state for the attention.

        Raises:
            UnsupportedError: If the prompts cannot be brought in with these arguments.
        """
        raise NotImplementedError

    def finish(self, stack: Stack, output: Any, state: CallState, call: Call) -> Any:
        """Show what the caller is to see of a stack's output.

        Args:
            stack: The stack.
            output: Its `ModelOutput`.
            state: From `prepare`.
            call: As there.

        Returns:
            An output of the same class.
        """
        return output
