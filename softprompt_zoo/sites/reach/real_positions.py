"""At the input embeddings alone: virtual tokens are real positions of a stack whose attention no prompt can enter."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.on_our_attention import OnOurAttention
from softprompt_zoo.sites.reach.reach import Look
from softprompt_zoo.sites.stack_facts import StackFacts


@dataclasses.dataclass(frozen=True)
class RealPositions(OnOurAttention):
    """What is left where no other way was found: embeddings and a mask, if these are all that the stack reads."""

    problem: str
    """Why keys and values cannot be placed in the stack."""
    lets_in: bool = True
    """Whether embeddings can; a stack that keeps a cache would see them twice."""
    keeps_keywords = True

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Find nothing, for there is nothing to be reached."""
        return ()

    def refuse_branches(self) -> None:
        """Refuse them: no attention is reached."""
        raise UnsupportedError(
            f"nothing can be added to the output of this model's attention: {self.problem}; choose a method at the "
            "input embeddings"
        )

    def refuse_attentions(self, stack: StackFacts, kwargs: Mapping[str, Any]) -> None:
        """Refuse weights of attention off the interface: where their virtual positions are is not known."""
        given = kwargs.get("output_attentions")
        if stack.module.config.output_attentions if given is None else given:
            raise UnsupportedError(
                f"{type(stack.module).__name__} shows attention weights in its own form, from which virtual positions "
                "cannot be removed; call it with output_attentions=False"
            )
