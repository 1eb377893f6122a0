"""One stack of a model's layers: the facts that were found of it, and with them its `reach`, once and for all."""

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
    """Note where the embedding table is after a model was moved, or how large after it was resized.

    Args:
        backbone: What was known. Not changed.
        stacks: The model's stacks.

    Returns:
        What holds now.
    """
    weight: Any = next(iter(stacks.values())).embedding.weight
    return dataclasses.replace(backbone, device=weight.device, dtype=weight.dtype, vocab_size=weight.shape[0])
