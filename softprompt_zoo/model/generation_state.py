"""The prompts of a `generate` that is running, for the forwards inside it."""

import contextvars
import dataclasses
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.sites.call import Combination, DecodingState, Layout


@dataclasses.dataclass
class Generation:
    """The prompts of one `generate`."""

    host: object
    """The model's prompts."""
    combinations: list[Combination] | None
    """One per row the user gave, or `None` for the active ones."""
    task_ids: Tensor | None
    soft_slots: Tensor | None
    layout: Layout | None = None
    """Where the encoder's text went."""
    decoding: DecodingState | None = None
    """What the prompts were built into; the first forward makes it, and all others go on with it."""

    def inherit(self, outer: "Generation") -> None:
        """Take from the `generate` around this one what the caller left out: they write the same text."""
        self.combinations = outer.combinations if self.combinations is None else self.combinations
        self.task_ids = outer.task_ids if self.task_ids is None else self.task_ids
        self.soft_slots = outer.soft_slots if self.soft_slots is None else self.soft_slots


CURRENT: contextvars.ContextVar[Generation | None] = contextvars.ContextVar("softprompt_generation", default=None)


def running(host: Any) -> Generation | None:
    """Return the `generate` that runs a model here.

    Args:
        host: The model's prompts.

    Returns:
        Its prompts; `None` outside of one, or while compiling, where a context variable cannot be read.
    """
    generation = None if torch.compiler.is_compiling() else CURRENT.get()
    return generation if generation is not None and generation.host is host else None
