"""Residual prompt tuning: trains virtual tokens and a small network, which adds something to each of them.

    f(x) = W_up relu(W_down x + b_down) + b_up                    (hidden); W_down (bottleneck, hidden)
    net(x) = g * norm(f(x)) + b                                   (hidden); norm to mean 0 and variance 1, as LayerNorm
    virtual_tokens[i] = P[i] + net(P[i])                          (tokens, hidden)
    virtual_tokens[i] = P[i] + net(net(P[i]))                     net="mlp2"
    virtual_tokens = P + transformer(P)                           net="transformer", of two layers

Enters at: the input embeddings.
Trained: tokens * hidden + networks * (2 * hidden * bottleneck + bottleneck + 3 * hidden), one network or one per token.
Merges to: the virtual tokens it computes.

Source: Razdaibiedina, Mao, Hou, Khabsa, Lewis, Ba and Almahairi, "Residual Prompt Tuning: Improving Prompt Tuning with
Residual Reparameterization", 2023 (arXiv 2305.03937); reference code arazd/ResidualPrompts,
`prompt_tuner.py` and `prompt_tuner2.py`.
Differs from the source: g starts at 0 and not at 1, so that training starts from the words themselves, whatever the
scale of the model's embeddings; `gain=1.0` is the source's start. The two layers of the transformer start from
different numbers. Networks without the residual, which are P-tuning's, and LSTMs are left out.
PEFT: PROMPT_TUNING of the virtual tokens; the network is not carried over.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import softprompt_zoo as zoo

ALIASES = ("residual_prompt_tuning", "residual_prompt")
RECIPE = zoo.Recipe(
    learning_rate=3e-3,
    steps=200,
    source="the best of 3e-3, 1e-2 and 3e-2 in 30 steps of 8 films with SmolLM2-135M, 10 tokens, one seed and 100 rows "
    "(losses of 0.330, 0.360 and 0.382); the steps are prompt tuning's. The reference has 0.3 for T5-base, batches of "
    "8 and 20 epochs",
)
INITS = ("sampled", "random")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
PASSES = {"mlp1": 1, "mlp2": 2}
NETS = (*PASSES, "transformer")
HEADS = 2
"""Of the transformer. Source: the reference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of residual prompt tuning."""

    num_virtual_tokens: int = 10
    """Virtual tokens of the prompt, at least 1. Source: the reference's default."""
    init: Any = dataclasses.field(default="sampled", metadata={"names": INITS})
    """Start of P: `"sampled"` frequent words, `"random"` numbers uniform in ±0.5, or another prompt: its saved folder,
    or `model.prompts[name]`."""
    net: str = "mlp1"
    """`"mlp1"`: the equation above; `"mlp2"`: the same layers twice, as in the reference; `"transformer"`: two
    transformer layers, in which the virtual tokens see each other."""
    shared: bool = True
    """Whether all virtual tokens share one network; `False` for one network per token, as the reference allows."""
    bottleneck_size: int = 800
    """Width between the layers of the network, in features; in the transformer, of its feed-forward layers. Source: the
    reference."""
    activation: str = "relu"
    """`"relu"`, `"tanh"` or `"sigmoid"`, between the layers of an MLP."""
    layer_norm: bool = True
    """Whether the output of an MLP is normalized; if not, `net(x) = f(x)`."""
    dropout: float = 0.0
    """Probability that a feature of f(x) is zeroed in training; in the transformer, applied where torch applies it. The
    reference's transformer has 0.05."""
    gain: float = 0.0
    """Initial factor on what the network adds, at least 0. With 0, training starts from P. The reference has 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_init(self.init, INITS, None, None, None)
        zoo.check_choice("net", self.net, NETS)
        zoo.check_choice("shared", self.shared, (False, True))
        zoo.check_positive_integer("bottleneck_size", self.bottleneck_size)
        zoo.check_choice("activation", self.activation, tuple(ACTIVATIONS))
        zoo.check_choice("layer_norm", self.layer_norm, (False, True))
        zoo.check_probability("dropout", self.dropout)
        zoo.check_not_negative("gain", self.gain)
        if self.net == "transformer":
            self._check_transformer()

    def _check_transformer(self) -> None:
        """Refuse options that only an MLP uses."""
        for field in dataclasses.fields(self):
            if field.name in ("shared", "activation", "layer_norm") and self._is_changed(field):
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)!r}, which only the MLPs use; leave it out with "
                    "net='transformer', or choose net='mlp1'"
                )

    def _is_changed(self, field: "dataclasses.Field[Any]") -> bool:
        return bool(getattr(self, field.name) != field.default)


class Parameters(nn.Module):
    """The trained embeddings P, and the network whose output is added to them."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.embeddings = nn.Parameter(torch.empty(config.num_virtual_tokens, backbone.hidden_size, **options))
        make = _Transformer if config.net == "transformer" else _MLP
        self.net: _MLP | _Transformer = make(config, backbone.hidden_size, options)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start P from words or random numbers, and the network from torch's default initialization."""
        self.net.start()
        if config.init == "random":
            self.embeddings.uniform_(-0.5, 0.5)
        else:
            self.embeddings.copy_(backbone.embed(zoo.sampled_ids(backbone, config.num_virtual_tokens)))

    @torch.no_grad()
    def start_from(self, tokens: zoo.VirtualTokens) -> None:
        """Start P from the plain tokens of another prompt."""
        if not isinstance(tokens, zoo.InputTokens):
            raise zoo.UnsupportedError(
                "residual cannot start from keys and values; give a prompt at the input embeddings as init"
            )
        self.net.start()
        self.embeddings.copy_(tokens.embeddings)

    def forward(self) -> Tensor:
        """Return the virtual tokens `(tokens, hidden)`."""
        added: Tensor = self.net(self.embeddings)
        return self.embeddings + added


class _MLP(nn.Module):
    """Two layers and a norm, with a leading axis of networks: a single network, or one per token."""

    def __init__(self, config: Config, hidden: int, options: dict[str, Any]) -> None:
        super().__init__()
        nets, width = 1 if config.shared else config.num_virtual_tokens, config.bottleneck_size
        self.config = config
        self.down = nn.Parameter(torch.empty(nets, hidden, width, **options))
        self.down_bias = nn.Parameter(torch.empty(nets, 1, width, **options))
        self.up = nn.Parameter(torch.empty(nets, width, hidden, **options))
        self.up_bias = nn.Parameter(torch.empty(nets, 1, hidden, **options))
        if config.layer_norm:
            self.norm_weight = nn.Parameter(torch.empty(nets, 1, hidden, **options))
            self.norm_bias = nn.Parameter(torch.empty(nets, 1, hidden, **options))

    def start(self) -> None:
        """Draw the weights like torch's linear layers, and scale the network's output."""
        for weight, bias in ((self.down, self.down_bias), (self.up, self.up_bias)):
            bound = 1 / math.sqrt(weight.shape[1])
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        if self.config.layer_norm:
            self.norm_weight.fill_(self.config.gain)
            self.norm_bias.zero_()
        else:
            self.up.mul_(self.config.gain)
            self.up_bias.mul_(self.config.gain)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return what is added to embeddings `(tokens, hidden)`."""
        tokens = embeddings[None] if self.config.shared else embeddings[:, None]
        for _ in range(PASSES[self.config.net]):
            tokens = self._once(tokens)
        return tokens.reshape(embeddings.shape)

    def _once(self, tokens: Tensor) -> Tensor:
        narrow = ACTIVATIONS[self.config.activation](tokens @ self.down + self.down_bias)
        wide = functional.dropout(narrow @ self.up + self.up_bias, self.config.dropout, self.training)
        if not self.config.layer_norm:
            return wide
        return functional.layer_norm(wide, wide.shape[-1:]) * self.norm_weight + self.norm_bias


class _Transformer(nn.Module):
    """Two transformer layers, in which every virtual token sees all others."""

    def __init__(self, config: Config, hidden: int, options: dict[str, Any]) -> None:
        super().__init__()
        if hidden % HEADS:
            raise zoo.UnsupportedError(
                f"net='transformer' has {HEADS} heads, and the model's embeddings a width of {hidden}, which they do "
                "not divide; choose net='mlp1'"
            )
        self.gain = config.gain
        sizes = (hidden, HEADS, config.bottleneck_size, config.dropout)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(*sizes, **options) for _ in range(2))

    def start(self) -> None:
        """Scale the network's output; everything else keeps torch's default initialization."""
        last: Any = self.layers[-1]
        last.norm2.weight.fill_(self.gain)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return what is added to embeddings `(tokens, hidden)`."""
        tokens = embeddings
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters) -> zoo.VirtualTokens:
    """Add the network's output to each virtual token."""
    return zoo.InputTokens(parameters())
