"""Looking up prompts in the bank, with errors meant for clients."""

import difflib
import itertools
from typing import Any

import softprompt_zoo as zoo

NAMES_TO_SUGGEST_FROM = 1000


class PromptRefusedError(ValueError):
    """A request cannot use the prompt it names; the message is one line for the client."""


class Catalog:
    """The prompts of a bank.

    Args:
        reader: The bank.
        suggests: Whether an error may mention the name of another prompt.
    """

    def __init__(self, reader: zoo.PrefixReader, *, suggests: bool = True) -> None:
        self._reader = reader
        self._suggests = suggests

    def find(self, name: Any) -> zoo.PrefixEntry:
        """Look up the current state of a prompt, without reading its keys and values.

        Args:
            name: The name in the request.

        Returns:
            The bank's entry.

        Raises:
            PromptRefusedError: If there is no such prompt, or it cannot be served; with the reason.
        """
        if not isinstance(name, str):
            raise PromptRefusedError(f"soft_prompt is {name!r}; expected the name of a prompt, as text")
        try:
            entry = self._reader.find(name)
        except zoo.ZooError as error:
            raise self._refusal(name, error) from error
        if entry is None:
            raise PromptRefusedError(f"there is no soft prompt {name!r}{self._suggestion(name)}")
        return entry

    def read(self, name: str) -> zoo.Prefix:
        """Read a whole prompt.

        Args:
            name: Its name.

        Returns:
            Its keys and values.

        Raises:
            PromptRefusedError: If it no longer exists, is damaged or has non-finite values.
        """
        try:
            return self._reader.read(name)
        except zoo.ZooError as error:
            raise self._refusal(name, error) from error

    def _refusal(self, name: str, error: zoo.ZooError) -> PromptRefusedError:
        """Return an error for the client that does not reveal where the bank is."""
        reason = str(error).replace(str(self._reader.address), "the bank")
        return PromptRefusedError(f"the soft prompt {name!r} cannot be served: {reason}")

    def _suggestion(self, name: str) -> str:
        if not self._suggests:
            return ""
        begin = name[:1]
        known = list(itertools.islice(self._reader.names(begin), NAMES_TO_SUGGEST_FROM))
        near = difflib.get_close_matches(name, known, 1)
        return f"; did you mean {near[0]!r}?" if near else ""
