"""What cannot be placed in a model, as the trial found it."""

import dataclasses
from collections.abc import Mapping

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.reach import Reach
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.tokens.placement import Placement


@dataclasses.dataclass(frozen=True)
class Refusals:
    """Refuses placements that would be wrong in a model."""

    reaches: tuple[Reach, ...]
    has_windows: bool
    is_causal: bool
    input_problem: str | None
    """Why the model has no place for input-level tokens; `None` if it has."""

    @classmethod
    def of(cls, stacks: Mapping[str, Stack], is_causal: bool, input_problem: str | None) -> "Refusals":
        """Take what there is to know of a model's stacks.

        Args:
            stacks: The stacks.
            is_causal: Whether virtual tokens at the input embeddings have keys and values of their own.
            input_problem: Why there is no place for them; `None` if there is.

        Returns:
            What to ask.
        """
        shapes = [shape for stack in stacks.values() for found in stack.shapes.values() for shape in found]
        reaches = tuple(stack.reach for stack in stacks.values())
        return cls(reaches, any(shape.window for shape in shapes), is_causal, input_problem)

    def __call__(self, placement: Placement) -> None:
        """Refuse a placement that would be wrong.

        Args:
            placement: Virtual tokens, with the weight that the user gave them.

        Raises:
            UnsupportedError: If it would be.
        """
        if placement.tokens.at_input is not None:
            self._check_input(placement)
        for reach in self.reaches:
            reach.refuse(placement, self.has_windows)

    def check_branches(self) -> None:
        """Refuse what is added beside attention.

        Raises:
            UnsupportedError: If a stack's attention is not reached in a way that lets it in.
        """
        for reach in self.reaches:
            reach.refuse_branches()

    def _check_input(self, placement: Placement) -> None:
        if placement.weight != 1.0 and not self.is_causal:
            raise UnsupportedError(
                f"the prompt's weight is {placement.weight}, but at the input embeddings of this model its tokens are "
                "real positions, which are read like text; give it the weight 1, or use a method that works on keys "
                "and values"
            )
        if placement.dropout and not self.is_causal:
            raise UnsupportedError(
                f"the placement has dropout={placement.dropout}, which is for keys and values, and at the input "
                "embeddings of this model virtual tokens have none of their own; drop parts of the embeddings in "
                "build_virtual_tokens where parameters.training is set"
            )
        if self.input_problem is not None:
            raise UnsupportedError(
                f"this model has no place for virtual tokens among its input embeddings: {self.input_problem}; "
                "choose a method on keys and values"
            )
