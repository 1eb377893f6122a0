"""Prefix tuning: trains keys and values of virtual tokens for every attention layer.

    prefix = embeddings                                               direct
    prefix = W2 tanh(W1 embeddings + b1) + b2                         reparameterization="mlp"
    keys[layer], values[layer] = prefix                               (kv_heads, tokens, head_dim)
    attention[layer] = softmax(query [keys; text keys]^T) [values; text values]

Enters at: keys and values of every layer; in an encoder-decoder at three sites, the encoder's and the
decoder's self-attention and the cross-attention.
Trained: tokens * layers * 2 * kv_heads * head_dim per site; with the network, its weights too.
Merges to: the direct prefix.

Source: Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021 (arXiv
2101.00190), section 4; reference code XiangLi1999/PrefixTuning, `gpt2/train_control.py` and `seq2seq/prefixTuning.py`.
Differs from the source: the default is the direct prefix that starts from real keys and values, which
trains without the network; the network's last layer is fitted to them by least squares, not by 500 steps of Adam.
PEFT: PREFIX_TUNING; for an encoder-decoder it can only hold the decoder's site.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_choice, check_probability, check_reparameterization
from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.hookspecs import hookimpl
from softprompt_zoo.methods.parts.initialization import keys_values_of_words
from softprompt_zoo.methods.parts.layer_table import LayerTable
from softprompt_zoo.methods.parts.start_options import check_init
from softprompt_zoo.methods.parts.starting import sites_of
from softprompt_zoo.tokens.layer_tokens import LayerTokens, flatten_layers
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

ALIASES = ("prefix",)
PEFT_TYPES = ("PREFIX_TUNING",)
HOLDS_PLAIN = LayerTokens
RECIPE = Recipe(
    learning_rate=2e-2,
    steps=60,
    source="the best of 5e-3, 1e-2 and 2e-2 on E2E with SmolLM2-135M, 20 tokens (benchmarks/compare_with_peft.py)",
)
SITES = ("encoder", "decoder", "cross")
INITS = ("sampled", "text", "random", "zero")
NET_SIZE = 512
"""Default hidden width of the network. Source: the reference's `mid_dim` for GPT-2 medium."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of prefix tuning."""

    init: Any = dataclasses.field(default=None, metadata={"names": INITS})
    """The model's own keys and values of `"sampled"` frequent words or of a `"text"`, `"random"` standard
    normal numbers (the reference's `init_shallow`), `"zero"` (PEFT's `init_weights="zero"`), or another prompt: its
    saved folder, or `model.prompts[name]`.
    By default `"text"` if there is an `init_text`, otherwise `"sampled"`."""
    init_text: str | None = None
    """The text of `init="text"`, tokenized without special tokens, repeated or cut to the prefix."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer, for `init="text"`."""
    reparameterization: str | None = None
    """`"mlp"` computes the prefix with a two-layer network during training; `None` trains it directly."""
    reparameterization_size: int | None = None
    """Hidden width of the network, in features; by default 512, as in the reference."""
    dropout: float = 0.0
    """Probability that an element of a key or value is zeroed during training, drawn for each row."""
    sites: tuple[str, ...] | None = None
    """Sites of an encoder-decoder, any of `"encoder"`, `"decoder"`, `"cross"`; `None` for all that the model has."""
    always_visible: bool = False
    """Keeps the prefix visible when a sliding window has moved past it; PEFT cannot reproduce that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settle(init=check_init(self.init, INITS, self.init_text, None, self.tokenizer))
        check_reparameterization(self.reparameterization, self.reparameterization_size, ("mlp",))
        check_probability("dropout", self.dropout)
        if self.sites is not None:
            _check_sites(self.sites)


def _check_sites(sites: tuple[str, ...]) -> None:
    for site in sites:
        check_choice("sites", site, SITES)
    if not sites or isinstance(sites, str):
        raise ValueError(f"sites is {sites!r}; expected a tuple with at least one of {', '.join(map(repr, SITES))}")


class Parameters(nn.Module):
    """The trained prefix of each site."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        count = config.num_virtual_tokens
        size = (config.reparameterization_size or NET_SIZE) if config.reparameterization == "mlp" else None
        tables = {site: LayerTable(backbone, site, count, size) for site in _sites(config, backbone)}
        self.prefixes = nn.ModuleDict(tables)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: Backbone) -> None:
        """Start from the keys and values that the frozen model computes for real words."""
        if config.init in ("random", "zero"):
            make = torch.randn if config.init == "random" else torch.zeros
            for prefix in self._all().values():
                prefix.fit(make(prefix.shape, device=backbone.device))
            return
        text = config.init_text if config.init == "text" else None
        states = keys_values_of_words(backbone, config.num_virtual_tokens, text, config.tokenizer)
        for site, prefix in self._all().items():
            prefix.fit(flatten_layers(states.sites[site]))

    @torch.no_grad()
    def start_from(self, tokens: VirtualTokens) -> None:
        """Start from the plain tokens of another prompt."""
        sites = sites_of(tokens)
        if set(sites) != set(self.prefixes):
            raise UnsupportedError(
                f"prefix_tuning at the sites {', '.join(self.prefixes)} cannot start from this prompt; "
                "give one with keys and values at the same sites"
            )
        for site, prefix in self._all().items():
            prefix.fit(flatten_layers(sites[site]))

    def _all(self) -> dict[str, LayerTable]:
        return dict(self.prefixes.items())  # type: ignore[arg-type]


def _sites(config: Config, backbone: Backbone) -> list[str]:
    if not backbone.layers:
        raise UnsupportedError(
            f"prefix_tuning needs keys and values, which cannot be reached in this model ({backbone.model_type}); "
            "choose a method at the input embeddings"
        )
    return [*backbone.layers] if config.sites is None else _chosen(config.sites, [*backbone.layers])


def _chosen(sites: Sequence[str], known: list[str]) -> list[str]:
    """Return the sites that the user chose, in the model's order."""
    for site in sites:
        if site not in known:
            raise UnsupportedError(f"this model has no site {site!r}; it has {', '.join(map(repr, known))}")
    return [site for site in known if site in sites]


def _tokens(parameters: Parameters) -> LayerTokens:
    return LayerTokens({site: prefix() for site, prefix in parameters.prefixes.items()})


@hookimpl
def build_virtual_tokens(parameters: Parameters) -> VirtualTokens:
    """Shape the prefix of each site into keys and values per layer."""
    return _tokens(parameters)


@hookimpl
def inject(config: Config, tokens: VirtualTokens) -> Placement:
    """Place them at the keys and values of their sites."""
    return Placement(tokens, dropout=config.dropout, always_visible=config.always_visible)
