"""One stack of a model's layers: the facts that were found of it, and the way by which it is reached.

A stack is found before a prompt is attached, and with it its `reach`, once and for all. What differs between the ways
is a method of `Reach`; the ways themselves are in `sites.reach`, one file each.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.backbone.traits import Sinusoids, zero_features
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float, Int, Shaped
from softprompt_zoo.sites.state import CallState, KeyValueRecording
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.placement import Placement

BINDING_ATTRIBUTE = "_softprompt_binding"
"""Attribute of a stack's module that ties it to prompts."""


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

    def choose_attention(self, stack: "Stack") -> None:
        """Let the stack's configs choose the attention function that this way needs, around the one that they chose.

        Raises:
            UnsupportedError: If prompts cannot be added to that one. Nothing is changed.
        """

    def follow_attention(self, stack: "Stack", before: str) -> None:
        """Go along with an attention function that was written to the config of a stack with prompts.

        Args:
            stack: The stack that is about to run.
            before: The name that its config had when the prompts came.

        Raises:
            UnsupportedError: If prompts cannot be added to it; the config has the name `before` again.
        """

    def install(self, stack: "Stack", model: Any) -> None:
        """Make a stack ready for prompts.

        Args:
            stack: The stack; its modules are changed.
            model: The model that gets the prompts, whose class `run`s the stack if it is one itself; else `None`.
        """
        raise NotImplementedError

    def remove(self, stack: "Stack") -> None:
        """Undo `install`, but for the names of attention functions, as models may share their configs."""
        raise NotImplementedError

    def enter(self, stack: "Stack", state: CallState | KeyValueRecording, kwargs: dict[str, Any]) -> dict[str, Any]:
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

    def leave(self, stack: "Stack", output: Any, kwargs: Mapping[str, Any]) -> Any:
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

    def show_hidden(self, stack: "Stack", is_wanted: bool) -> None:
        """Show the branches beside attention what the attention modules read, where they do not see it anyway.

        Args:
            stack: A stack with prompts; its modules are changed.
            is_wanted: Whether a prompt wants it.
        """

    def refuse_attentions(self, stack: "Stack", kwargs: Mapping[str, Any]) -> None:
        """Refuse to show attention weights from which real virtual positions could not be cut.

        Args:
            stack: An encoder.
            kwargs: Its arguments.

        Raises:
            UnsupportedError: If they are wanted.
        """

    def refuse_single_layers(self, stack: "Stack") -> None:
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
class Stack:
    """One stack of layers and how it takes positions."""

    name: str
    """`"encoder"` or `"decoder"`; also the name of its self-attention's site."""
    module: PreTrainedModel
    embedding: nn.Module
    reach: Reach
    attentions: Mapping[str, tuple[nn.Module, ...]]
    """Site name to its attention modules, in layer order."""
    shapes: Mapping[str, tuple[LayerShape, ...]]
    is_causal: bool
    """Whether no token sees a later one."""
    takes_position_ids: bool
    cache_argument: str
    """Name of the argument in which it takes a cache of keys and values; empty if it takes none."""
    position_table: nn.Embedding | Sinusoids | None
    """Table of positions, learned or sinusoidal, if there is one."""
    is_padding_sensitive: bool = False
    """Whether padding changes its states, so that rows with prompts of several lengths would be wrong."""
    ids_scale: float = 1.0
    """Factor that the stack puts on the table's rows if it is given ids, and not if it is given embeddings: Marian."""
    embeddings_scale: float = 1.0
    """Factor that it puts on embeddings it is given, before it adds positions."""
    rotation_limit: int | None = None
    """Length of text beyond which all of its positions are rotated in another way; `None` if there is none."""
    is_audio_encoder: bool = False
    """Whether it reads features in place of tokens; `embedding` is then the table of the stack after it."""

    def embed(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... hidden"]:
        """Turn token ids into what the stack takes in their place."""
        embeddings: Tensor = self.embedding(ids)
        return embeddings if self.ids_scale == 1.0 else embeddings * self.ids_scale

    def reading(self, ids: Int[Tensor, "rows length"]) -> dict[str, Any]:
        """Return the arguments for token ids; where the stack reads sound, for silence."""
        return {"input_features": zero_features(self.module)} if self.is_audio_encoder else {"input_ids": ids}

    def text(self, kwargs: Mapping[str, Any]) -> Shaped[Tensor, "rows ..."] | None:
        """Return what the stack reads of its arguments: embeddings, ids or sound; `None` if there is nothing."""
        names = ("input_features",) if self.is_audio_encoder else ("inputs_embeds", "input_ids")
        return next((kwargs[name] for name in names if kwargs.get(name) is not None), None)

    @property
    def has_hooks(self) -> bool:
        """Whether hooks bring prompts in."""
        return BINDING_ATTRIBUTE in self.module.__dict__

    @property
    def shares_attention(self) -> bool:
        """Whether layers share an attention module, as ALBERT's do."""
        return any(len(set(modules)) < len(modules) for modules in self.attentions.values())

    @property
    def position_start(self) -> int:
        """Position id of the first token; RoBERTa's begin after its padding index."""
        padding = part_of(self.position_table, "padding_idx")
        return 0 if padding is None else padding + 1


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
