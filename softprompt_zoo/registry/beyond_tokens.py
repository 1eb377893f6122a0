"""What a method does beyond constant virtual tokens, determined from its hooks when it is loaded."""

import dataclasses
from collections.abc import Collection, Mapping


@dataclasses.dataclass(frozen=True)
class BeyondTokens:
    """What a method's prompts do that constant tokens do not."""

    makes_rows: bool
    """Whether `build_virtual_tokens` makes different tokens for each row."""
    reads_text: bool
    """Whether it, or `inject`, asks for the rows' text."""
    maps_text: bool
    """Whether there is `map_text`."""
    attends: bool
    """Whether there is `attend`."""
    reads_hidden: bool
    """Whether `attend` asks for the hidden states that attention reads."""

    @classmethod
    def of(cls, hooks: Mapping[str, Collection[str]]) -> "BeyondTokens | None":
        """Determine what a method does.

        Args:
            hooks: The names of its hooks, each with the names of the arguments it asks for.

        Returns:
            What it does; `None` if its prompts are constant tokens.
        """
        makes_rows = "text" in hooks.get("build_virtual_tokens", ())
        reads_text = makes_rows or "text" in hooks.get("inject", ())
        reads_hidden = "hidden" in hooks.get("attend", ())
        found = cls(makes_rows, reads_text, "map_text" in hooks, "attend" in hooks, reads_hidden)
        return found if found.reads_text or found.maps_text or found.attends else None

    @property
    def description(self) -> str:
        """What it does, for the message on why there is no merged form."""
        if self.makes_rows:
            return "makes different tokens for the text of each row"
        if self.reads_text:
            return "places its tokens depending on the text of each row"
        return "changes the text's embeddings" if self.maps_text else "adds to the output of attention"
