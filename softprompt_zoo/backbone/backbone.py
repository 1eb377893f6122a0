"""What the host knows of a frozen model and of its stacks of layers."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.quantized import keep_unpacked
from softprompt_zoo.backbone.traits import Sinusoids, kinds_of_own_attention, silent_features
from softprompt_zoo.tokens.tokens import LayerShape, LayerTokens


class Site(NamedTuple):
    """The place of one attention module."""

    name: str
    """`"encoder"`, `"decoder"` or `"cross"`."""
    layer: int
    """Index within the site, from 0."""


def _none(name: str) -> None:
    """Know no parameter of the model."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Sizes of the frozen model and its embedding table: all that a plugin gets to see of it."""

    family: str
    """`"causal"`, `"encoder"` or `"encoder_decoder"`."""
    hidden_size: int
    """Width of the embedding module's output."""
    vocab_size: int
    """Rows of the embedding table."""
    layers: Mapping[str, tuple[LayerShape, ...]]
    """Site name to its layers; empty where keys and values cannot be reached."""
    max_positions: int | None
    """Longest sequence the model was built for, virtual tokens included; `None` if unbounded."""
    takes_cache: bool
    """Whether the (last) stack takes a cache of keys and values, which PEFT's prefixes need."""
    dtype: torch.dtype
    """Dtype of the embedding table."""
    device: torch.device
    """Device of the embedding table."""
    embed: Callable[[Tensor], Tensor] = dataclasses.field(repr=False, compare=False)
    """Token ids `(...)` to embeddings `(..., hidden)`, as the model's embedding module scales them."""
    keys_values: Callable[[Tensor], LayerTokens] = dataclasses.field(repr=False, compare=False)
    """Token ids `(tokens,)` to the keys and values the frozen model computes for them at every site."""
    project: Callable[[str, Sequence[Tensor | None]], LayerTokens] = dataclasses.field(repr=False, compare=False)
    """A self-attention's site and hidden states `(tokens, hidden)` per layer (or `None`) to the keys and values that
    each layer's own frozen projections make of them at the first position; gradients flow to the states."""
    module_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    """Site name to the qualified names of its attention modules in the user's model, in layer order."""
    parameter_names: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)
    """Qualified names of the parameters of the user's model, for files that depend on what there is (a bias, say)."""
    model_type: str = dataclasses.field(default="", compare=False)
    """transformers' name of the architecture, for files that are bound to some; no method branches on it elsewhere."""
    task_head: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    """The modules of the model's task head, by their names in it; empty where there is none."""
    heads: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    """The modules behind the last layer by their names in the model: its task head, or what predicts words."""
    own_parameter: Callable[[str], Tensor | None] = dataclasses.field(default=_none, repr=False, compare=False)
    """Qualified name of a parameter of the frozen model to the parameter; `None` if there is none."""
    has_lm_head: bool = True
    """Whether the model has a head over the vocabulary."""
    scales_ids: bool = dataclasses.field(default=False, compare=False)
    """Whether the model scales the rows of its embedding table only where it is given ids, which PEFT does not know."""
    input_problem: str | None = dataclasses.field(default=None, compare=False)
    """Why the model has no place for input-level tokens; `None` if it has."""
    through_cache: bool = dataclasses.field(default=False, compare=False)
    """Whether keys and values get in through the cache; then gates and `always_visible` cannot be kept."""
    find_part: Callable[[Mapping[str, Tensor]], str | None] = dataclasses.field(
        default=lambda tensors: None, repr=False, compare=False
    )
    """Named tensors to the name of one that is a part of the model; `None` if none is."""

    def sizes(self) -> dict[str, Any]:
        """Return what a saved prompt must agree with, as JSON values."""
        layers = {
            site: [[*shape.key_size, *([shape.value_dim] if shape.value_dim else [])] for shape in shapes]
            for site, shapes in self.layers.items()
        }
        return {"family": self.family, "hidden_size": self.hidden_size, "layers": layers}


@dataclasses.dataclass(frozen=True)
class Stack:
    """One stack of layers and how it takes positions."""

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
    """Name of the argument in which it takes a cache of keys and values; empty if it takes none."""
    position_table: nn.Embedding | Sinusoids | None
    """Table of positions, learned or sinusoidal, if there is one."""
    problem: str | None
    """Why keys and values cannot be placed here; `None` if they can."""
    minds_padding: bool = False
    """Whether padding changes its states, so that rows with prompts of several lengths would be wrong."""
    takes_real_positions: bool = False
    """Whether virtual tokens can be real positions even so: it reads embeddings and a mask, and keeps no cache."""
    ids_scale: float = 1.0
    """Factor that the stack puts on the table's rows if it is given ids, and not if it is given embeddings: Marian."""
    embeddings_scale: float = 1.0
    """Factor that it puts on embeddings it is given, before it adds positions."""
    rotation_limit: int | None = None
    """Length of text beyond which all of its positions are rotated in another way; `None` if there is none."""

    def embed(self, ids: Tensor) -> Tensor:
        """Turn token ids `(...)` into what the stack takes in their place, `(..., hidden)`."""
        embeddings: Tensor = self.embedding(ids)
        return embeddings if self.ids_scale == 1.0 else embeddings * self.ids_scale

    def reading(self, ids: Tensor) -> dict[str, Any]:
        """Return the arguments for token ids `(rows, length)`; where the stack reads sound, for silence."""
        return {"input_features": silent_features(self.module)} if self.reads_sound else {"input_ids": ids}

    through_cache: bool = False
    """Whether they get in through the cache, as the attention interface does not hand the state down."""
    reads_sound: bool = False
    """Whether it reads features in the place of tokens; `embedding` is then the table of the stack behind it."""

    @property
    def shares_attention(self) -> bool:
        """Whether layers share an attention module, as ALBERT's do."""
        return any(len(set(modules)) < len(modules) for modules in self.attentions.values())

    @property
    def is_carried(self) -> bool:
        """Whether its attention is one of `CARRIED`, to which it does not hand keywords down."""
        return any(bool(kinds_of_own_attention(module)) for modules in self.attentions.values() for module in modules)

    @property
    def position_start(self) -> int:
        """Position id of the first token; RoBERTa's begin behind its padding index."""
        padding = getattr(self.position_table, "padding_idx", None)
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


def attention_configs(model: PreTrainedModel) -> list[Any]:
    """List the distinct config objects that choose the attention function of the model's modules."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    unique = {id(config): config for config in configs if hasattr(config, "_attn_implementation_internal")}
    return list(unique.values())


@contextlib.contextmanager
def trial(modules: Sequence[PreTrainedModel], choose: Callable[[str], str]) -> Iterator[None]:
    """Put stacks into eval mode on another attention function; restore both afterwards.

    Args:
        modules: The stacks.
        choose: From the attention implementation that a config names to the one of the trial.

    Yields:
        Nothing.
    """
    configs = [config for module in modules for config in attention_configs(module)]
    before = [config._attn_implementation_internal for config in configs]
    training = [(child, child.training) for module in modules for child in module.modules()]
    try:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = choose(implementation)
        for module in modules:
            keep_unpacked(module.eval())
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation
        for child, mode in training:
            child.training = mode
