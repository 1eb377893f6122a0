"""P-tuning: trains virtual tokens that a small recurrent network makes, in front of the text or inside it.

    virtual_tokens = W2 relu(W1 biLSTM(embeddings) + b1) + b2                   (tokens, hidden)
    virtual_tokens = W3 relu(W2 relu(W1 embeddings + b1) + b2) + b3             reparameterization="mlp"
    virtual_tokens = embeddings                                                 reparameterization=None

Enters at: input embeddings; in front of the text, or in the slots of a template (`zoo.encode`).
Trained: tokens * hidden, and the weights of the network.
Merges to: the output of the network.

Source: Liu, Zheng, Du, Ding, Qian, Yang and Tang, "GPT Understands, Too", 2021 (arXiv 2103.10385),
section 3; reference code THUDM/P-tuning, `LAMA/p_tuning/prompt_encoder.py`.
Differs from the source: the network's last layer is fitted by least squares, so that training starts from the
embeddings of real words; the reference's initialization is `init="random"`. One virtual token works. The model stays
frozen.
PEFT: P_TUNING, whose files hold the output of the network: they load as merged prompts. Its `"MLP"`, which the paper
does not have, is our `"mlp"`; we write PROMPT_TUNING, which holds the same.
"""

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_probability, check_reparameterization
from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.hookspecs import hookimpl
from softprompt_zoo.methods.parts.initialization import sampled_ids, text_ids
from softprompt_zoo.methods.parts.start_options import check_init
from softprompt_zoo.methods.parts.starting import embeddings_of
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

ALIASES = ("ptuning",)
PEFT_TYPES = ("P_TUNING",)
RECIPE = Recipe(
    learning_rate=1e-3,
    steps=200,
    source="the best of 1e-3, 3e-3 and 1e-2 in 60 steps on films with SmolLM2-135M, 20 tokens, and 200 steps beat 60 "
    "there (benchmarks/recipes.py); the reference has 1e-4 and 250 steps in few-shot training (THUDM/P-tuning, "
    "PT-Fewshot/cli.py)",
)
INITS = ("sampled", "text", "random")
LSTM_LAYERS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of P-tuning."""

    init: Any = dataclasses.field(default=None, metadata={"names": INITS})
    """Initial output of the network: embeddings of `"sampled"` frequent words or of a `"text"`; `"random"`
    leaves all weights at torch's defaults, as in the reference; or another prompt: its saved folder, or
    `model.prompts[name]`. By default `"text"` if there is an `init_text`, otherwise `"sampled"`."""
    init_text: str | None = None
    """The text of `init="text"`, tokenized without special tokens, repeated or cut to the prompt."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer, for `init="text"`."""
    reparameterization: str | None = "lstm"
    """The network: the paper's `"lstm"`, PEFT's `"mlp"` of three layers, or `None` for bare embeddings."""
    reparameterization_size: int | None = None
    """Width of the network, in features: of each direction of the LSTM, by default half the embedding width, as
    in the reference; of the MLP's hidden layers, by default the embedding width, as in PEFT."""
    dropout: float = 0.0
    """Probability that a feature between the LSTM's two layers is zeroed during training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settle(init=check_init(self.init, INITS, self.init_text, None, self.tokenizer))
        check_reparameterization(self.reparameterization, self.reparameterization_size, ("lstm", "mlp"))
        check_probability("dropout", self.dropout)
        if self.dropout and self.reparameterization != "lstm":
            raise ValueError(
                f"dropout is {self.dropout}, which acts between the layers of the LSTM, but reparameterization is "
                f"{self.reparameterization!r}; set dropout=0.0 or reparameterization='lstm'"
            )


class Parameters(nn.Module):
    """The trained embeddings and the network after them."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        hidden = backbone.hidden_size
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        options: dict[str, Any] = {"dtype": dtype, "device": backbone.device}
        self.embeddings = nn.Parameter(torch.empty(config.num_virtual_tokens, hidden, **options))
        self.lstm: nn.Module | None = None
        self.head: nn.Sequential | None = None
        if config.reparameterization == "lstm":
            size = config.reparameterization_size or max(1, hidden // 2)
            self.lstm = _LSTM(hidden, size, config.dropout, options)
            self.head = _layers([2 * size, 2 * size, hidden], options)
        elif config.reparameterization == "mlp":
            size = config.reparameterization_size or hidden
            self.head = _layers([hidden, size, size, hidden], options)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: Backbone) -> None:
        """Make the network produce the embeddings of real words at the start."""
        count = config.num_virtual_tokens
        if config.init == "random":
            self.embeddings.normal_()
        elif config.init == "text":
            self._fit(backbone.embed(text_ids(backbone, config.tokenizer, str(config.init_text), count)))
        else:
            self._fit(backbone.embed(sampled_ids(backbone, count)))

    @torch.no_grad()
    def start_from(self, tokens: VirtualTokens) -> None:
        """Start from the plain tokens of another prompt."""
        self._fit(embeddings_of(tokens, "p_tuning"))

    def forward(self) -> Float[Tensor, "tokens hidden"]:
        """Return the virtual tokens."""
        if self.head is None:
            return self.embeddings
        result: Tensor = self.head(self._features())
        return result

    def _features(self) -> Float[Tensor, "tokens width"]:
        return self.embeddings if self.lstm is None else self.lstm(self.embeddings)

    def _fit(self, target: Float[Tensor, "tokens hidden"]) -> None:
        """Make the network return `target`, or the closest to it that its last layer can achieve."""
        if self.head is None:
            self.embeddings.copy_(target)
            return
        self.embeddings.normal_()
        activations = functional.pad(self.head[:-1](self._features()), (0, 1), value=1.0)
        weight = (torch.linalg.pinv(activations) @ target.to(activations)).T
        last: Any = self.head[-1]
        last.weight.copy_(weight[:, :-1])
        last.bias.copy_(weight[:, -1])


class _LSTM(nn.Module):
    """A bidirectional LSTM over one sequence; torch's module cannot be compiled, but its function can."""

    def __init__(self, features: int, size: int, dropout: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.size = size
        self.dropout = dropout
        module = nn.LSTM(features, size, LSTM_LAYERS, bidirectional=True, **options)
        for name, parameter in module.named_parameters():  # torch's names, order and initial values
            self.register_parameter(name, nn.Parameter(parameter.detach()))

    def forward(self, sequence: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens {2*self.size}"]:
        """Run both directions over the sequence."""
        zeros = sequence.new_zeros(2 * LSTM_LAYERS, 1, self.size)
        weights: list[Tensor] = list(self.parameters())
        options = (True, LSTM_LAYERS, self.dropout, self.training, True, False)
        output: Tensor = torch.lstm(sequence[:, None], (zeros, zeros), weights, *options)[0]
        return output[:, 0]


def _layers(widths: list[int], options: dict[str, Any]) -> nn.Sequential:
    """Build linear layers of these widths with a ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, **options), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@hookimpl
def build_virtual_tokens(parameters: Parameters) -> VirtualTokens:
    """Run the network over the embeddings."""
    return InputTokens(parameters())
