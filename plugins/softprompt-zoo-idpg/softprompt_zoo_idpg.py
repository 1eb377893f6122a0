"""IDPG: trains a small network that makes the virtual tokens of each row out of the row's own text.

    x = last hidden state of the row's text, frozen model alone       (hidden): first token, last token, or mean
    virtual_tokens = base + up(gelu(down(x)))                         (tokens, hidden)
    virtual_tokens = base * sigmoid(U V^T)                            gate_rank=r, LoPA
    U = row_up(tanh(row_down(x)))                                     (tokens, r)
    V = column_up(tanh(column_down(x)))                               (hidden, r)
    W = sum over i of kron(factors[i], blocks[i])                     each weight, with kronecker_terms=n: PHM layers

Enters at: the input embeddings; different virtual tokens for every row.
Trained: tokens * hidden, and the weights of the networks.
Merges to: nothing; the tokens are computed anew for each text.

Source: Wu, Wang, Gu, Hou, Dong, Vydiswaran and Ma, "IDPG: An Instance-Dependent Prompt Generation Method", 2022 (arXiv
2204.04497), section 3; reference code CSerxy/IDPG, `fairseq/modules/transformer_sentence_encoder.py`. The gate: Jain,
Chaudhuri, Reps and Jermaine, "Prompt Tuning Strikes Back: Customizing Foundation Models with Low-Rank Prompt
Adaptation", 2024 (arXiv 2405.15282); reference code jabhinav/Prompt-Tuning-Strikes-Back-with-LOPA, `utils/model.py`.
Differs from the source: the tokens are placed in front of the text, IDPG's after its [CLS]; the base starts from words;
dropout is off by default (theirs is 0.1). Only the input layer has prompts: M-IDPG, which inserts different ones in
every layer, is left out. LoPA reads the text with a second, smaller model; here the frozen model itself reads it, as in
IDPG. Causal models, whose sentence is the state of the last token as in LoPA's code, and encoder-decoders are supported
as well.
PEFT: none of its types can hold a prompt that depends on the text.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import softprompt_zoo as zoo

ALIASES = ("instance_dependent_prompt_generation",)
RECIPE = zoo.Recipe(
    learning_rate=3e-3,
    steps=200,
    source="the better of 1e-3 and 3e-3, with a gate of 3e-3 and 1e-2, in 30 steps on films with SmolLM2-135M "
    "(benchmarks/recipes.py --steps 30 --rows 100); IDPG's scripts have 1e-4 to 5e-3 for RoBERTa-large, LoPA's 1e-3",
)
EXAMPLE_OPTIONS = (
    {"num_virtual_tokens": 5, "bottleneck_size": 8, "kronecker_terms": 4},
    {"num_virtual_tokens": 7},
)
INITS = ("sampled", "random")
SENTENCES = {"encoder": "first", "causal": "last", "encoder_decoder": "mean"}
"""Model family to the state that represents a text: [CLS] in IDPG, the last token in LoPA's code. The text of an
encoder-decoder has neither."""
PHM_TERMS = 16
"""Source: IDPG, section 4.2."""
PHM_DEVIATION, DEVIATION = 0.05, 0.02
"""Of the initial values of PHM layers and of plain ones. Source: IDPG's code; for plain ones, LoPA's."""
START_GATE = 0.5
"""Initial value of every gate, sigmoid(0)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of IDPG."""

    num_virtual_tokens: int = 5
    """Virtual tokens per row, at least 1. Source: IDPG, section 4.2."""
    bottleneck_size: int = 256
    """Width between the two layers of a network, in features. Source: IDPG's code."""
    kronecker_terms: int | None = None
    """Number of terms of each weight, a sum of Kronecker products (a PHM layer); it must divide both widths. 1 for a
    plain linear layer. By default 16 as in IDPG; with a gate, 1 as in LoPA's code."""
    gate_rank: int | None = None
    """Rank of LoPA's gate, by which the networks multiply the base; `None` for IDPG's sum. LoPA's code has 4."""
    sentence: str | None = None
    """What represents a text: the state of its `"first"` or `"last"` token, or the `"mean"` of all; by default the
    first for an encoder, the last for a causal model, the mean for an encoder-decoder."""
    init: Any = dataclasses.field(default="sampled", metadata={"names": INITS})
    """Start of the base: `"sampled"` frequent words; `"random"` numbers uniform in ±0.5, as in IDPG's code; or
    another prompt: its saved folder, or `model.prompts[name]`."""
    dropout: float = 0.0
    """Probability that a feature of the sentence, or between the two layers, is zeroed while training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate_rank is not None:
            zoo.check_positive_integer("gate_rank", self.gate_rank)
        if self.kronecker_terms is None:
            object.__setattr__(self, "kronecker_terms", 1 if self.gate_rank else PHM_TERMS)
        zoo.check_positive_integer("kronecker_terms", self.kronecker_terms)
        zoo.check_positive_integer("bottleneck_size", self.bottleneck_size)
        zoo.check_choice("sentence", self.sentence, (None, "first", "last", "mean"))
        zoo.check_init(self.init, INITS, None, None, None)
        zoo.check_probability("dropout", self.dropout)


class Parameters(nn.Module):
    """The base, and the networks that read the sentence."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        tokens, hidden, rank = config.num_virtual_tokens, backbone.hidden_size, config.gate_rank
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.base = nn.Parameter(torch.empty(tokens, hidden, **options))  # the last bias of IDPG's network
        widths = [tokens * hidden] if rank is None else [tokens * rank, hidden * rank]
        self.nets = nn.ModuleList(_Net(hidden, width, config, options) for width in widths)
        self._gate_rank = rank

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start the base from words or from noise, and the networks from small numbers."""
        if config.init == "random":
            self._start(torch.rand_like(self.base) - 0.5)
        else:
            self._start(backbone.embed(zoo.sampled_ids(backbone, config.num_virtual_tokens)))

    def start_from(self, tokens: zoo.VirtualTokens) -> None:
        """Start the base from the plain tokens of another prompt."""
        if not isinstance(tokens, zoo.InputTokens):
            raise zoo.UnsupportedError(
                "idpg cannot start from keys and values; give a prompt at the input embeddings as init"
            )
        self._start(tokens.embeddings)

    def forward(self, sentences: Tensor) -> Tensor:
        """Compute the virtual tokens.

        Args:
            sentences: The state that represents each text, `(rows, hidden)`.

        Returns:
            `(rows, tokens, hidden)`; gradients flow to base and networks.
        """
        rows = len(sentences)
        made: list[Tensor] = [net(sentences) for net in self.nets]
        if self._gate_rank is None:
            return self.base + made[0].view(rows, *self.base.shape)
        row, column = (part.view(rows, -1, self._gate_rank) for part in made)
        return self.base * torch.sigmoid(row @ column.transpose(1, 2))

    @torch.no_grad()
    def _start(self, base: Tensor) -> None:
        self.base.copy_(base if self._gate_rank is None else base / START_GATE)  # so that tokens have the norm of words
        for module in self.nets.modules():
            if isinstance(module, _Layer):
                module.reset_parameters()


class _Net(nn.Module):
    """Two layers with a bottleneck."""

    def __init__(self, features: int, width: int, config: Config, options: dict[str, Any]) -> None:
        super().__init__()
        is_gate, terms = config.gate_rank is not None, config.kronecker_terms
        assert terms is not None
        self.down = _Layer(features, config.bottleneck_size, True, terms, options)
        self.up = _Layer(config.bottleneck_size, width, is_gate, terms, options)
        self._activation = torch.tanh if is_gate else functional.gelu
        self._dropout = nn.Dropout(config.dropout)

    def forward(self, sentences: Tensor) -> Tensor:
        inside = self._dropout(self._activation(self.down(self._dropout(sentences))))
        outputs: Tensor = self.up(inside)
        return outputs


class _Layer(nn.Module):
    """A linear layer whose weight `(features, width)` is a sum of Kronecker products if there are several terms."""

    def __init__(self, features: int, width: int, has_bias: bool, terms: int, options: dict[str, Any]) -> None:
        super().__init__()
        if features % terms or width % terms:
            raise zoo.UnsupportedError(
                f"kronecker_terms is {terms}, and a layer of {features} to {width} features cannot be split into that "
                "many parts; choose a number that divides both, or 1 for plain linear layers"
            )
        self.factors = nn.Parameter(torch.empty(terms, terms, terms, **options)) if terms > 1 else None
        self.blocks = nn.Parameter(torch.empty(terms, features // terms, width // terms, **options))
        self.bias = nn.Parameter(torch.empty(width, **options)) if has_bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs @ self.weight()
        return outputs if self.bias is None else outputs + self.bias

    def weight(self) -> Tensor:
        """Sum the products: a term's entry at `(a * features + c, b * width + d)` is `factors[a, b] * blocks[c, d]`."""
        if self.factors is None:
            return self.blocks[0]
        terms, features, width = self.blocks.shape
        return torch.einsum("iab,icd->acbd", self.factors, self.blocks).reshape(terms * features, terms * width)

    def reset_parameters(self) -> None:
        if self.factors is not None:
            self.factors.normal_(std=PHM_DEVIATION)
        self.blocks.normal_(std=DEVIATION if self.factors is None else PHM_DEVIATION)
        if self.bias is not None:
            self.bias.zero_()


@zoo.hookimpl
def build_virtual_tokens(
    config: Config, parameters: Parameters, backbone: zoo.Backbone, text: zoo.Text
) -> zoo.VirtualTokens:
    """Read each row's sentence, and compute the row's tokens from it."""
    states = text.states().to(parameters.base)
    if states.shape[-1] != backbone.hidden_size:
        raise zoo.UnsupportedError(
            f"idpg computes tokens from the model's last states, which are {states.shape[-1]} wide, but its embeddings "
            f"are {backbone.hidden_size} wide; choose a method that reads the embeddings, such as smop"
        )
    weights = _weights(text.mask, config.sentence or SENTENCES[backbone.family]).to(states)
    return zoo.InputTokens(parameters(torch.einsum("rl,rlh->rh", weights, states)))


def _weights(mask: Tensor, sentence: str) -> Tensor:
    """Return the share `(rows, length)` of each position in the sentence; zeros for a row without text."""
    if sentence == "mean":
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    place = mask.cumsum(dim=1)
    wanted = 1 if sentence == "first" else place[:, -1:]
    return mask & (place == wanted)
