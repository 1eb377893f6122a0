"""Looking prompts up in the bank, with reasons that a client can read."""

import difflib
import itertools
from typing import Any

import softprompt_zoo as zoo

NAMES_TO_SUGGEST_FROM = 1000


class PromptRefusedError(ValueError):
    """A request cannot have the prompt it names; the text is one line for the client."""


class Catalog:
    """The prompts of a bank.

    Args:
        reader: The bank.
        suggests: Whether an error may tell the name of another prompt.
    """

    def __init__(self, reader: zoo.PrefixReader, *, suggests: bool = True) -> None:
        self._reader = reader
        self._suggests = suggests

    def find(self, name: Any) -> zoo.PrefixEntry:
        """Look up a prompt as it is now; its keys and values are not read.

        Args:
            name: What the request says.

        Returns:
            What the bank says of it.

        Raises:
            PromptRefusedError: If there is no such prompt, or it cannot be served; says why.
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
        """Read a prompt whole.

        Args:
            name: Its name.

        Returns:
            Its keys and values.

        Raises:
            PromptRefusedError: If it is gone, damaged or not finite.
        """
        try:
            return self._reader.read(name)
        except zoo.ZooError as error:
            raise self._refusal(name, error) from error

    def _refusal(self, name: str, error: zoo.ZooError) -> PromptRefusedError:
        """Return an error for the client, who need not know where the bank is."""
        reason = str(error).replace(str(self._reader.address), "the bank")
        return PromptRefusedError(f"the soft prompt {name!r} cannot be served: {reason}")

    def _suggestion(self, name: str) -> str:
        if not self._suggests:
            return ""
        begin = name[:1]
        known = list(itertools.islice(self._reader.names(begin), NAMES_TO_SUGGEST_FROM))
        near = difflib.get_close_matches(name, known, 1)
        return f"; did you mean {near[0]!r}?" if near else ""
