"""Lays methods' pages out for the site: every `Word: …` line of a docstring becomes a paragraph."""

import re
from typing import Any

import griffe

PARTS = ("Enters at", "Trained", "Merges to", "Source", "Differs from the source", "PEFT")


class MethodPage(griffe.Extension):
    """Runs while mkdocstrings reads the package."""

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Show the default of a dataclass field, not the call that sets it."""
        default = re.match(r"dataclasses\.field\(default=([^,)]+)", str(attr.value))
        if default:
            attr.value = default[1]

    def on_module(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Separate the parts of a method's docstring, which stand on lines of their own in the source."""
        if mod.docstring and mod.path.startswith(("softprompt_zoo.methods.", "softprompt_zoo_")):
            pattern = rf"^({'|'.join(PARTS)}): "
            text = re.sub(pattern, r"\n**\1**: ", mod.docstring.value, flags=re.MULTILINE)
            mod.docstring.value = re.sub(r"(?<=\S) {4,}", "   ", text)  # narrow enough for the page
