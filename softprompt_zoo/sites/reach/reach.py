"""The interface of the ways to reach the attention of a stack: each difference between them is a method of `Reach`.

A model's `Refusals` reject what its ways do not support.
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
    """What one run of a stack on a few tokens has shown, by which each `Reach` decides. Another run gives another."""

    module: Any
    embedding: nn.Module
    cache_argument: str
    is_alone: bool
    """Whether it is the model's only stack."""
    is_idle: bool
    """Whether it ran without its weights, so that its results are meaningless."""
    calls: Sequence[AttentionCall] = ()
    """The calls of attention functions that received the per-call keyword; none if the run failed."""
    scales: tuple[float, float] = (1.0, 1.0)
    """Its `ids_scale` and `embeddings_scale`, if the run did not fail."""
    error: str | None = None
    """Why the run failed; `None` if it did not."""


class Reach:
    """A way to reach the attention of a stack, with defaults for what most ways do alike."""

    problem: str | None = None
    """Why keys and values cannot be placed in the stack; `None` if they can."""
    lets_in: bool = True
    """Whether prompts of any method can enter."""
    uses_cache: bool = False
    """Whether the model sees a cache even if the caller wants none."""
    texts_apart: str = "pass use_cache=False and no attention_mask, or a 4-D attention_mask that keeps the texts apart"
    """Advice, for an error message, when a row holds several texts."""
    keeps_keywords: bool = False
    """Whether such models pass no keywords to their stacks, so that a call gets there through a view of the model."""
    shows_columns: bool = False
    """Whether the weights of the prompts' columns can be read."""

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Find the attention modules that can be reached in this way. The stack is not changed.

        Args:
            look: What a run of the stack has shown.

        Returns:
            One call of each, in the order of the layers; none if this way does not reach the stack.
        """
        raise NotImplementedError

    def choose_attention(self, stack: StackFacts) -> None:
        """Make the stack's configs choose the attention function that this way needs, wrapping the current one.

        Raises:
            UnsupportedError: If prompts cannot be added to the current one. Nothing is changed.
        """

    def follow_attention(self, stack: StackFacts, before: str) -> None:
        """Adapt to an attention function that was written to the config of a stack with prompts.

        Args:
            stack: The stack that is about to run.
            before: The name in its config when the prompts were attached.

        Raises:
            UnsupportedError: If prompts cannot be added to it; the config is reset to `before`.
        """

    def install(self, stack: StackFacts, model: Any) -> None:
        """Prepare a stack for prompts.

        Args:
            stack: The stack; its modules are changed.
            model: The model that gets the prompts, whose class `run`s the stack if it is itself the stack; else `None`.
        """
        raise NotImplementedError

    def remove(self, stack: StackFacts) -> None:
        """Undo `install`, except for the names of attention functions, as models may share configs."""
        raise NotImplementedError

    def enter(self, stack: StackFacts, state: CallState | KeyValueRecording, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Pass the prompts of one call to a stack.

        Args:
            stack: The stack.
            state: The prompts, or a recording of keys and values.
            kwargs: The stack's arguments. Not changed.

        Returns:
            The arguments with what the attention needs from the state; the caller adds the state itself.
        """
        return kwargs

    def run(self, module: Any, forward: Any, kwargs: dict[str, Any]) -> Any:
        """Run a stack's own forward with the state in its arguments.

        Args:
            module: The stack's module.
            forward: Its own forward, which takes the module as `self`.
            kwargs: Its arguments.

        Returns:
            The stack's output.
        """
        return forward(module, **kwargs)

    def leave(self, stack: StackFacts, output: Any, kwargs: Mapping[str, Any]) -> Any:
        """Remove from a stack's output what `enter` inserted.

        Args:
            stack: The stack.
            output: The stack's output. Not changed.
            kwargs: The arguments that the stack got.

        Returns:
            An output of the same class.
        """
        return output

    def counted(self, past: Any, tokens: int) -> Any:
        """Return how many past positions a stack that counts them itself takes into account.

        Args:
            past: Text tokens in the cache.
            tokens: Virtual tokens before the longest row.
        """
        return past

    def refuse(self, placement: Placement, windows: bool) -> None:
        """Refuse virtual tokens that cannot be placed in this way.

        Args:
            placement: The tokens.
            windows: Whether the model has sliding windows.

        Raises:
            UnsupportedError: If its weight, gates, scores, mask or visibility in windows is not supported.
        """

    def refuse_branches(self) -> None:
        """Refuse additions to the output of attention.

        Raises:
            UnsupportedError: If this way does not reach the output of attention.
        """

    def show_hidden(self, stack: StackFacts, is_wanted: bool) -> None:
        """Let branches see the input of the attention modules, if they do not see it already.

        Args:
            stack: A stack with prompts; its modules are changed.
            is_wanted: Whether a prompt needs it.
        """

    def refuse_attentions(self, stack: StackFacts, kwargs: Mapping[str, Any]) -> None:
        """Refuse to return attention weights from which virtual positions cannot be removed.

        Args:
            stack: An encoder.
            kwargs: Its arguments.

        Raises:
            UnsupportedError: If they are requested.
        """

    def refuse_single_layers(self, stack: StackFacts) -> None:
        """Refuse to call one layer of a stack by itself.

        Raises:
            UnsupportedError: If its keys and values could not be read.
        """
        raise UnsupportedError(
            f"{type(stack.module).__name__} does not use transformers' attention interface, so its projections cannot "
            "be called one layer at a time to turn hidden states into keys and values; choose a method that trains "
            "keys and values themselves, or one at the input embeddings"
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
            UnsupportedError: If it would be wrong.
        """
        if placement.tokens.at_input is not None:
            self._check_input(placement)
        for reach in self.reaches:
            reach.refuse(placement, self.has_windows)

    def check_branches(self) -> None:
        """Refuse additions to the output of attention.

        Raises:
            UnsupportedError: If a stack's attention is not reached in a way that allows them.
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
                f"the placement has dropout={placement.dropout}, which is for keys and values, but at the input "
                "embeddings of this model virtual tokens have none of their own; drop parts of the embeddings in "
                "build_virtual_tokens if parameters.training is set"
            )
        if self.input_problem is not None:
            raise UnsupportedError(
                f"this model has no place for virtual tokens among its input embeddings: {self.input_problem}; "
                "choose a method on keys and values"
            )
