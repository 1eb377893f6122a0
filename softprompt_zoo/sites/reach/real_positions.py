"""At the input embeddings only: virtual tokens as real positions of a stack whose attention no prompt can enter."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.attention_in_config import AttentionInConfig
from softprompt_zoo.sites.reach.reach import Look
from softprompt_zoo.sites.stack_facts import StackFacts


@dataclasses.dataclass(frozen=True)
class RealPositions(AttentionInConfig):
    """The fallback if there is no other way: embeddings and a mask, if these are all that the stack reads."""

    problem: str
    """Why keys and values cannot be placed in the stack."""
    lets_in: bool = True
    """Whether embeddings can be placed; a stack that keeps a cache would see them twice."""
    keeps_keywords = True

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Return nothing, as nothing can be reached."""
        return ()

    def refuse_branches(self) -> None:
        """Refuse all: no attention is reached."""
        raise UnsupportedError(
            f"nothing can be added to the output of this model's attention: {self.problem}; choose a method at the "
            "input embeddings"
        )

    def refuse_attentions(self, stack: StackFacts, kwargs: Mapping[str, Any]) -> None:
        """Refuse weights of attention outside the interface: the place of their virtual positions is unknown."""
        given = kwargs.get("output_attentions")
        if stack.module.config.output_attentions if given is None else given:
            raise UnsupportedError(
                f"{type(stack.module).__name__} returns attention weights in its own form, from which virtual "
                "positions cannot be removed; call it with output_attentions=False"
            )
