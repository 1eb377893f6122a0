"""The prompts of a model, as they are saved."""

import dataclasses
from collections.abc import Mapping

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.prompt.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """The prompts of a model, as they are written."""

    backbone: Backbone
    """Sizes of the model."""
    architecture: str
    """Name of its class."""
    base_name: str | None
    """Name or path it was loaded from, if known."""
    active: tuple[str, ...]
    """Names of the prompts that rows see when a call names none, in order."""
    prompts: Mapping[str, Prompt]
    """By name, in the order they were added."""
