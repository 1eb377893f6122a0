"""Prefix tuning: trains keys and values of virtual tokens for every attention layer.

    prefix = embeddings                                               direct
    prefix = W2 tanh(W1 embeddings + b1) + b2                         reparameterization="mlp"
    keys[layer], values[layer] = prefix                               (kv_heads, tokens, head_dim)
    attention[layer] = softmax(query [keys; text keys]^T) [values; text values]

Enters at: keys and values of every layer; of an encoder-decoder at three sites, the encoder's and the
decoder's self-attention and the cross-attention.
Trained: tokens * layers * 2 * kv_heads * head_dim per site; with the net, its weights too.
Merges to: the direct prefix.

Source: Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021 (arXiv
2101.00190), section 4; reference code XiangLi1999/PrefixTuning, `gpt2/train_control.py` and `seq2seq/prefixTuning.py`.
Differs from the source: the default is the direct prefix that starts from real keys and values, which
trains without the net; the net's last layer is fitted to them by least squares, not by 500 steps of Adam.
PEFT: PREFIX_TUNING; of an encoder-decoder it can hold the decoder's site only.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt_zoo.backbone import Backbone
from softprompt_zoo.config import MethodConfig, Recipe, check_choice, check_positive_integer, check_probability
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.hookspecs import hookimpl
from softprompt_zoo.initialization import check_init, sampled_ids, text_ids
from softprompt_zoo.tokens import LayerTokens, Placement, VirtualTokens, flatten_layers, unflatten_layers

ALIASES = ("prefix",)
PEFT_TYPES = ("PREFIX_TUNING",)
RECIPE = Recipe(
    learning_rate=2e-2,
    steps=60,
    source="the best of 5e-3, 1e-2 and 2e-2 on E2E with SmolLM2-135M, 20 tokens (benchmarks/compare_with_peft.py)",
)
SITES = ("encoder", "decoder", "cross")
INITS = ("sampled", "text", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of prefix tuning."""

    init: Any = dataclasses.field(default="sampled", metadata={"names": INITS})
    """The model's own keys and values of `"sampled"` frequent words or of a `"text"`, `"random"` standard
    normal numbers (the reference's `init_shallow`), or another prompt: its saved folder, or `model.prompts[name]`."""
    init_text: str | None = None
    """The text of `init="text"`, tokenised without special tokens, repeated or cut to the prefix."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer, for `init="text"`."""
    reparameterization: str | None = None
    """`"mlp"` makes the prefix with a two-layer net while training; `None` trains it directly."""
    reparameterization_size: int = 512
    """Hidden width of the net, in features. Source: the reference's `mid_dim` for GPT-2 medium."""
    dropout: float = 0.0
    """Probability that an element of a key or value is zeroed while training, for each row anew."""
    sites: tuple[str, ...] | None = None
    """Sites of an encoder-decoder, any of `"encoder"`, `"decoder"`, `"cross"`; `None` for all the model has."""
    always_visible: bool = False
    """Keeps the prefix in sight when a sliding window has moved past it; PEFT cannot reproduce that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_init(self.init, INITS, self.init_text, None, self.tokenizer)
        check_choice("reparameterization", self.reparameterization, (None, "mlp"))
        check_positive_integer("reparameterization_size", self.reparameterization_size)
        check_probability("dropout", self.dropout)
        for site in self.sites if self.sites is not None else SITES:
            check_choice("sites", site, SITES)
        if self.sites is not None and (not self.sites or isinstance(self.sites, str)):
            raise ValueError(
                f"sites is {self.sites!r}; expected a tuple with at least one of {', '.join(map(repr, SITES))}"
            )


class Parameters(nn.Module):
    """The trained prefix of each site."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.prefixes = nn.ModuleDict({site: _Prefix(config, backbone, site) for site in _sites(config, backbone)})

    @torch.no_grad()
    def initialize(self, config: Config, backbone: Backbone) -> None:
        """Start from the keys and values the frozen model computes for real words."""
        count = config.num_virtual_tokens
        if config.init == "random":
            for prefix in self._all().values():
                prefix.fit(torch.randn(prefix.shape, device=backbone.device))
            return
        sampled = config.init != "text"
        ids = (
            sampled_ids(backbone, count)
            if sampled
            else text_ids(backbone, config.tokenizer, str(config.init_text), count)
        )
        states = backbone.keys_values(ids)
        for site, prefix in self._all().items():
            prefix.fit(flatten_layers(states.sites[site]))

    @torch.no_grad()
    def start_from(self, tokens: VirtualTokens) -> None:
        """Start from the plain tokens of another prompt."""
        if not isinstance(tokens, LayerTokens) or set(tokens.sites) != set(self.prefixes):
            raise UnsupportedError(
                f"prefix_tuning at the sites {', '.join(self.prefixes)} cannot start from this prompt; "
                "give one with keys and values at the same sites"
            )
        for site, prefix in self._all().items():
            prefix.fit(flatten_layers(tokens.sites[site]))

    def _all(self) -> "dict[str, _Prefix]":
        return dict(self.prefixes.items())  # type: ignore[arg-type]


class _Prefix(nn.Module):
    """One site's prefix `(tokens, features)`, direct or made by the net."""

    def __init__(self, config: Config, backbone: Backbone, site: str) -> None:
        super().__init__()
        features = sum(2 * layer.kv_heads * layer.head_dim for layer in backbone.layers[site])
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.shape = (config.num_virtual_tokens, features)
        has_net = config.reparameterization == "mlp"
        width = backbone.hidden_size if has_net else features
        self.embeddings = nn.Parameter(torch.empty(config.num_virtual_tokens, width, **options))
        size = config.reparameterization_size
        self.hidden = nn.Linear(width, size, **options) if has_net else None
        self.output = nn.Linear(size, features, **options) if has_net else None

    def forward(self) -> Tensor:
        """Return the prefix, `(tokens, features)`."""
        if self.hidden is None or self.output is None:
            return self.embeddings
        result: Tensor = self.output(torch.tanh(self.hidden(self.embeddings)))
        return result

    def fit(self, target: Tensor) -> None:
        """Make the prefix start at `target`, `(tokens, features)`; the net's embeddings are standard normal."""
        if self.hidden is None or self.output is None:
            self.embeddings.copy_(target)
            return
        self.embeddings.normal_()
        activations = functional.pad(torch.tanh(self.hidden(self.embeddings)), (0, 1), value=1.0)
        weight = (torch.linalg.pinv(activations) @ target.to(activations)).T
        self.output.weight.copy_(weight[:, :-1])
        self.output.bias.copy_(weight[:, -1])


def _sites(config: Config, backbone: Backbone) -> list[str]:
    if not backbone.layers:
        raise UnsupportedError(
            "prefix_tuning needs keys and values, which cannot be reached in this model; "
            "choose a method at the input embeddings"
        )
    missing = [site for site in config.sites or () if site not in backbone.layers]
    if missing:
        raise UnsupportedError(f"this model has no site {missing[0]!r}; it has {', '.join(map(repr, backbone.layers))}")
    return [site for site in backbone.layers if config.sites is None or site in config.sites]


def _tokens(parameters: Parameters, backbone: Backbone) -> LayerTokens:
    return LayerTokens(
        {site: unflatten_layers(prefix(), backbone.layers[site]) for site, prefix in parameters.prefixes.items()}
    )


@hookimpl
def build_virtual_tokens(parameters: Parameters, backbone: Backbone) -> VirtualTokens:
    """Shape the prefix of each site into keys and values per layer."""
    return _tokens(parameters, backbone)


@hookimpl
def inject(config: Config, tokens: VirtualTokens) -> Placement:
    """Place them at the keys and values of their sites."""
    return Placement(tokens, dropout=config.dropout, always_visible=config.always_visible)


@hookimpl
def merge(parameters: Parameters, backbone: Backbone) -> VirtualTokens:
    """Return what the net makes, without the net."""
    return _tokens(parameters, backbone)
