"""How a forward gets from a model to its stacks; found when the model gets its prompts."""

import dataclasses
from collections.abc import Mapping

from torch import nn

from softprompt_zoo.model.hidden_states import HiddenStates
from softprompt_zoo.sites.stack import Stack


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a model's own forward has to know."""

    is_stack: bool = False
    """Whether the model is a stack itself: then hooks bring the prompts in, and it has no arguments for them."""
    apart: tuple[str, ...] = ()
    """Names of the stacks inside that the model does not hand keywords to."""
    hidden_states: HiddenStates = dataclasses.field(default_factory=HiddenStates)
    """Shows them to prompts that want what attention reads."""

    @classmethod
    def of(cls, model: nn.Module, stacks: Mapping[str, Stack]) -> "Entry":
        """Find the way into a model.

        Args:
            model: The model.
            stacks: Its stacks.

        Returns:
            What its forward has to know.
        """
        inside = [name for name, stack in stacks.items() if stack.module is not model]
        apart = tuple(name for name in inside if stacks[name].reach.keeps_keywords)
        return cls(is_stack=len(inside) < len(stacks), apart=apart, hidden_states=HiddenStates(model))
