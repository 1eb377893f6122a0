"""One stack of a model's layers: the facts found about it, and its `reach`, chosen once and for all."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.sites.reach.reach import Reach
from softprompt_zoo.sites.stack_facts import StackFacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack(StackFacts):
    """One stack of layers, and the way to its attention."""

    reach: Reach


def follow(backbone: Backbone, stacks: Mapping[str, Stack]) -> Backbone:
    """Update a backbone after its model was moved or its embedding table resized.

    Args:
        backbone: The previous facts. Not changed.
        stacks: The model's stacks.

    Returns:
        The current facts.
    """
    weight: Any = next(iter(stacks.values())).embedding.weight
    return dataclasses.replace(backbone, device=weight.device, dtype=weight.dtype, vocab_size=weight.shape[0])
