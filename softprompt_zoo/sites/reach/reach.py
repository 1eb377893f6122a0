"""What a way to reach the attention of a stack is: everything in which the ways differ is a method of `Reach`.

What a model's ways have no place for, its `Refusals` say.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.stack_facts import StackFacts
from softprompt_zoo.sites.state import CallState, KeyValueRecording
from softprompt_zoo.tokens.placement import Placement


@dataclasses.dataclass(frozen=True)
class Look:
    """What is known of a stack when a way to reach it is looked for."""

    module: Any
    embedding: nn.Module
    cache_argument: str
    is_alone: bool
    """Whether it is the model's only stack."""
    calls: Sequence[AttentionCall] = ()
    """The calls of attention functions that a run of it made, where the per-call keyword arrived; none if it failed."""
    scales: tuple[float, float] = (1.0, 1.0)
    """Its `ids_scale` and `embeddings_scale`."""
    error: str | None = None
    """Why the run failed."""
    is_idle: bool = False
    """Whether it ran without its weights: what it computed means nothing then."""


class Reach:
    """A way to reach the attention of a stack. What needs no word in one of the ways is done as here."""

    problem: str | None = None
    """Why keys and values cannot be placed in the stack; `None` if they can."""
    lets_in: bool = True
    """Whether prompts of any method can enter."""
    uses_cache: bool = False
    """Whether the model sees a cache where the caller wants none."""
    texts_apart: str = "pass use_cache=False and no attention_mask, or a 4-D attention_mask that keeps the texts apart"
    """What the caller of a model can do whose row holds several texts."""
    keeps_keywords: bool = False
    """Whether such models hand no keywords to their stacks, so that a call gets there by a view of the model."""
    shows_columns: bool = False
    """Whether the weights of the prompts' columns can be read."""

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Find the attention modules that are reached in this way. The stack is left as it was.

        Args:
            look: What is known of the stack.

        Returns:
            One call of each, in the order of the layers; none if this is no way to reach the stack.
        """
        raise NotImplementedError

    def choose_attention(self, stack: StackFacts) -> None:
        """Let the stack's configs choose the attention function that this way needs, around the one that they chose.

        Raises:
            UnsupportedError: If prompts cannot be added to that one. Nothing is changed.
        """

    def follow_attention(self, stack: StackFacts, before: str) -> None:
        """Go along with an attention function that was written to the config of a stack with prompts.

        Args:
            stack: The stack that is about to run.
            before: The name that its config had when the prompts came.

        Raises:
            UnsupportedError: If prompts cannot be added to it; the config has the name `before` again.
        """

    def install(self, stack: StackFacts, model: Any) -> None:
        """Make a stack ready for prompts.

        Args:
            stack: The stack; its modules are changed.
            model: The model that gets the prompts, whose class `run`s the stack if it is one itself; else `None`.
        """
        raise NotImplementedError

    def remove(self, stack: StackFacts) -> None:
        """Undo `install`, but for the names of attention functions, as models may share their configs."""
        raise NotImplementedError

    def enter(self, stack: StackFacts, state: CallState | KeyValueRecording, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Give a stack the prompts of one call.

        Args:
            stack: The stack.
            state: The prompts, or what records keys and values.
            kwargs: The stack's arguments. Not changed.

        Returns:
            The arguments with what the attention needs of the state; the state itself is added by the caller.
        """
        return kwargs

    def run(self, module: Any, forward: Any, kwargs: dict[str, Any]) -> Any:
        """Run a stack's own forward with the state that is among its arguments.

        Args:
            module: The stack's module.
            forward: Its own forward, which takes it as `self`.
            kwargs: Its arguments.

        Returns:
            The stack's output.
        """
        return forward(module, **kwargs)

    def leave(self, stack: StackFacts, output: Any, kwargs: Mapping[str, Any]) -> Any:
        """Take out of a stack's output what `enter` put in.

        Args:
            stack: The stack.
            output: What it returned. Not changed.
            kwargs: The arguments that it got.

        Returns:
            An output of the same class.
        """
        return output

    def counted(self, past: Any, tokens: int) -> Any:
        """Return how many positions a stack that counts them itself believes to be after the text.

        Args:
            past: Tokens of text in the cache.
            tokens: Virtual tokens in front of the longest row.
        """
        return past

    def refuse(self, placement: Placement, windows: bool) -> None:
        """Refuse virtual tokens that cannot be placed in this way.

        Args:
            placement: The tokens.
            windows: Whether the model has sliding windows.

        Raises:
            UnsupportedError: If there is no place for a weight, gates, scores, a mask, or what windows are not to hide.
        """

    def refuse_branches(self) -> None:
        """Refuse what is added beside attention.

        Raises:
            UnsupportedError: If the output of attention is not reached in this way.
        """

    def show_hidden(self, stack: StackFacts, is_wanted: bool) -> None:
        """Show the branches beside attention what the attention modules read, where they do not see it anyway.

        Args:
            stack: A stack with prompts; its modules are changed.
            is_wanted: Whether a prompt wants it.
        """

    def refuse_attentions(self, stack: StackFacts, kwargs: Mapping[str, Any]) -> None:
        """Refuse to show attention weights from which real virtual positions could not be cut.

        Args:
            stack: An encoder.
            kwargs: Its arguments.

        Raises:
            UnsupportedError: If they are wanted.
        """

    def refuse_single_layers(self, stack: StackFacts) -> None:
        """Refuse to call one layer of a stack by itself.

        Raises:
            UnsupportedError: If what it makes of hidden states could not be read.
        """
        raise UnsupportedError(
            f"{type(stack.module).__name__} is off transformers' attention interface, so its projections cannot be "
            "called one layer at a time to make keys and values of hidden states; choose a method that trains keys "
            "and values themselves, or one at the input embeddings"
        )


@dataclasses.dataclass(frozen=True)
class Refusals:
    """Refuses placements that would be wrong in a model."""

    reaches: tuple[Reach, ...]
    has_windows: bool
    is_causal: bool
    input_problem: str | None
    """Why the model has no place for input-level tokens; `None` if it has."""

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
