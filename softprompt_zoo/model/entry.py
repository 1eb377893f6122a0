"""How a forward gets from a model to its stacks; determined when prompts are attached."""

import dataclasses
from collections.abc import Mapping

from torch import nn

from softprompt_zoo.model.branch_inputs import BranchInputs
from softprompt_zoo.sites.stack import Stack


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a model's own forward needs to know."""

    is_stack: bool = False
    """Whether the model is a stack itself: then hooks insert the prompts, and it has no arguments for them."""
    apart: tuple[str, ...] = ()
    """Names of the inner stacks that the model does not pass keywords to."""
    branch_inputs: BranchInputs = dataclasses.field(default_factory=BranchInputs)
    """Shows the input of attention to branches that read it."""

    @classmethod
    def of(cls, model: nn.Module, stacks: Mapping[str, Stack]) -> "Entry":
        """Determine how a forward reaches the stacks of a model.

        Args:
            model: The model.
            stacks: Its stacks.

        Returns:
            What its forward needs to know.
        """
        inside = [name for name, stack in stacks.items() if stack.module is not model]
        apart = tuple(name for name in inside if stacks[name].reach.keeps_keywords)
        return cls(is_stack=len(inside) < len(stacks), apart=apart, branch_inputs=BranchInputs(model))
