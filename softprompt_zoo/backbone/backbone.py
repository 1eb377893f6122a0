"""The view of a frozen model that plugins get."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.families import FAMILIES, Family
from softprompt_zoo.backbone.inside import Inside
from softprompt_zoo.shapes import Bool, Float, Int
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.layer_tokens import LayerTokens


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Sizes of the frozen model and its embedding table: all that a plugin can see of it."""

    family: str
    """`"causal"`, `"encoder"` or `"encoder_decoder"`."""
    hidden_size: int
    """Width of the embedding module's output."""
    vocab_size: int
    """Rows of the embedding table."""
    layers: Mapping[str, tuple[LayerShape, ...]]
    """Site name to its layers; empty where keys and values cannot be reached."""
    max_positions: int | None
    """Longest sequence the model was built for, including virtual tokens; `None` if unbounded."""
    takes_cache: bool
    """Whether the (last) stack takes a cache of keys and values, which PEFT's prefixes need."""
    dtype: torch.dtype
    """Dtype of the embedding table."""
    device: torch.device
    """Device of the embedding table."""
    embed: Callable[[Int[Tensor, "..."]], Float[Tensor, "... hidden"]] = dataclasses.field(repr=False, compare=False)
    """Maps token ids to embeddings, scaled as by the model's embedding module."""
    keys_values: Callable[[Int[Tensor, " tokens"]], LayerTokens] = dataclasses.field(repr=False, compare=False)
    """Maps token ids to the keys and values that the frozen model computes for them at every site."""
    project: Callable[[str, Sequence[Float[Tensor, "tokens hidden"] | None]], LayerTokens] = dataclasses.field(
        repr=False, compare=False
    )
    """Maps the site of a self-attention and hidden states per layer (or `None`) to the keys and values that each
    layer's own frozen projections compute from them at the first position; gradients flow to the states."""
    states: Callable[
        [Float[Tensor, "rows length hidden"], Bool[Tensor, "rows length"], Int[Tensor, "#rows length"]],
        Float[Tensor, "rows length hidden"],
    ] = dataclasses.field(repr=False, compare=False)
    """Maps the embeddings, mask and positions of texts to the last hidden states of the frozen model, without
    gradient; of an encoder-decoder, those of its encoder."""
    module_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    """Site name to the qualified names of its attention modules in the user's model, in layer order."""
    parameter_names: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)
    """Qualified names of the parameters of the user's model, for files that depend on which exist (a bias, say)."""
    model_type: str = dataclasses.field(default="", compare=False)
    """transformers' name of the architecture, for files tied to specific ones; nothing else may branch on it."""
    has_lm_head: bool = True
    """Whether the model has a language modeling head."""
    through_cache: bool = dataclasses.field(default=False, compare=False)
    """Whether keys and values enter through the cache; gates and `always_visible` are then not possible."""
    inside: Inside = dataclasses.field(default=Inside(), repr=False, compare=False)
    """For the package itself; plugins must not rely on it."""
    kind: Family = dataclasses.field(init=False, repr=False, compare=False)
    """The properties of its family."""

    def __post_init__(self) -> None:
        # An attribute: a compiled forward breaks at a cached property.
        object.__setattr__(self, "kind", FAMILIES[self.family])

    def sizes(self) -> dict[str, Any]:
        """Return the sizes that a saved prompt must match, as JSON values."""
        layers = {
            site: [[*shape.key_size, *([shape.value_dim] if shape.value_dim else [])] for shape in shapes]
            for site, shapes in self.layers.items()
        }
        return {"family": self.family, "hidden_size": self.hidden_size, "layers": layers}
