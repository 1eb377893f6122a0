"""The facts found about one stack of a model's layers before a prompt is attached."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.backbone.traits import Sinusoids, zero_features
from softprompt_zoo.shapes import Float, Int, Shaped
from softprompt_zoo.tokens.layer_shape import LayerShape

BINDING_ATTRIBUTE = "_softprompt_binding"
"""Attribute of a stack's module that links it to prompts."""


@dataclasses.dataclass(frozen=True)
class StackFacts:
    """One stack of layers, and how it handles positions."""

    name: str
    """`"encoder"` or `"decoder"`; also the name of its self-attention's site."""
    module: PreTrainedModel
    embedding: nn.Module
    attentions: Mapping[str, tuple[nn.Module, ...]]
    """Site name to its attention modules, in layer order."""
    shapes: Mapping[str, tuple[LayerShape, ...]]
    is_causal: bool
    """Whether no token sees a later one."""
    takes_position_ids: bool
    cache_argument: str
    """Name of the argument for its cache of keys and values; empty if it takes none."""
    position_table: nn.Embedding | Sinusoids | None
    """Table of positions, learned or sinusoidal, if there is one."""
    is_padding_sensitive: bool = False
    """Whether padding changes its states, so that rows with prompts of different lengths would be wrong."""
    ids_scale: float = 1.0
    """Factor that the stack applies to the table's rows if it gets ids, but not if it gets embeddings, as in Marian."""
    embeddings_scale: float = 1.0
    """Factor that it applies to given embeddings before adding positions."""
    rotation_limit: int | None = None
    """Length of text beyond which all of its positions are rotated differently; `None` if there is none."""
    is_audio_encoder: bool = False
    """Whether it reads features instead of tokens; `embedding` is then the table of the next stack."""

    def embed(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... hidden"]:
        """Turn token ids into the embeddings that the stack takes instead."""
        embeddings: Tensor = self.embedding(ids)
        return embeddings if self.ids_scale == 1.0 else embeddings * self.ids_scale

    def reading(self, ids: Int[Tensor, "rows length"]) -> dict[str, Any]:
        """Return the arguments for token ids; for silence if the stack reads audio."""
        return {"input_features": zero_features(self.module)} if self.is_audio_encoder else {"input_ids": ids}

    def text(self, kwargs: Mapping[str, Any]) -> Shaped[Tensor, "rows ..."] | None:
        """Return the stack's input among its arguments: embeddings, ids or audio features; `None` if there is none."""
        names = ("input_features",) if self.is_audio_encoder else ("inputs_embeds", "input_ids")
        return next((kwargs[name] for name in names if kwargs.get(name) is not None), None)

    @property
    def has_hooks(self) -> bool:
        """Whether hooks insert prompts."""
        return BINDING_ATTRIBUTE in self.module.__dict__

    @property
    def shares_attention(self) -> bool:
        """Whether layers share an attention module, like ALBERT's."""
        return any(len(set(modules)) < len(modules) for modules in self.attentions.values())

    @property
    def position_start(self) -> int:
        """Position id of the first token; RoBERTa's begin after its padding index."""
        padding = part_of(self.position_table, "padding_idx")
        return 0 if padding is None else padding + 1
