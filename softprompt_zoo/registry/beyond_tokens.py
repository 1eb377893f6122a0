"""What a method does beyond constant virtual tokens; found in its hooks when it is loaded."""

import dataclasses
from collections.abc import Collection, Mapping


@dataclasses.dataclass(frozen=True)
class BeyondTokens:
    """What a method's prompts do that constant tokens do not."""

    makes_rows: bool
    """Whether `build_virtual_tokens` makes other tokens for each row."""
    reads_text: bool
    """Whether it, or `inject`, asks for the rows' text."""
    maps_text: bool
    """Whether there is `map_text`."""

    @classmethod
    def of(cls, hooks: Mapping[str, Collection[str]]) -> "BeyondTokens | None":
        """Find out what a method does.

        Args:
            hooks: The names of its hooks, and of the arguments that each of them asks for.

        Returns:
            What it does; `None` if its prompts are constant tokens.
        """
        makes_rows = "text" in hooks.get("build_virtual_tokens", ())
        found = cls(makes_rows, makes_rows or "text" in hooks.get("inject", ()), "map_text" in hooks)
        return found if found.reads_text or found.maps_text else None

    @property
    def description(self) -> str:
        """What it does, for a message: why there is no merged form."""
        if self.makes_rows:
            return "makes other tokens for the text of each row"
        return "places its tokens by the text of each row" if self.reads_text else "changes the text's embeddings"
