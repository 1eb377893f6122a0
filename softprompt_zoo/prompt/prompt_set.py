"""A model's prompts in the form in which they are saved."""

import dataclasses
from collections.abc import Mapping

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.prompt.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """A model's prompts in the form in which they are written."""

    backbone: Backbone
    """Sizes of the model."""
    architecture: str
    """Name of its class."""
    base_name: str | None
    """Name or path that it was loaded from, if known."""
    active: tuple[str, ...]
    """Names of the prompts that rows see when a call names none, in order."""
    prompts: Mapping[str, Prompt]
    """The prompts by name, in the order in which they were added."""
