"""DePT: trains a short prompt, and offsets of the text's own embeddings, at two learning rates.

    virtual_tokens = P                                                (tokens, hidden)
    text[i] = embed(text)[i] + 8 / sqrt(rank) * (A B)[i]              for position i below max_length
    text[i] = embed(text)[i] + relu(embed(text)[i] A + a) B + b       offset="token", ADePT: for every position

Enters at: the input embeddings, in front of a causal model's text, or of an encoder's; and the text's embeddings.
Trained: tokens * hidden + rank * (max_length + hidden); for ADePT tokens * hidden + rank * (2 * hidden + 1) + hidden.
Merges to: nothing; the text's offsets are not virtual tokens.

Source: Shi and Lipani, "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", 2023 (arXiv 2309.05173),
section 3; reference code ZhengxiangShi/DePT, `peft/tuners/prompt_tuning_lora.py` and `peft/peft_model.py`. ADePT: Tang,
Hu and Liu, "ADePT: Adaptive Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", 2025 (arXiv 2501.03291);
reference code HungerPWAY/ADePT, `peft/tuners/prompt_tuning_lorax.py` and `peft/peft_model.py`.
Differs from the source: positions are counted in each row's text, while the reference counts the columns of a batch
padded to max_length, including padding and a causal model's answer. Only the text is shifted, in training too, and
generated tokens are not, as in the reference's generation. The prompt starts from sampled words or a given text, while
the reference has one fixed text. Positions from max_length on keep their embedding; the reference truncates texts
there.
PEFT: none of its types can hold offsets of the text.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import softprompt_zoo as zoo

ALIASES = ("decomposed_prompt_tuning",)
RECIPE = zoo.Recipe(
    learning_rate=3e-2,
    steps=200,
    source="prompt tuning's, searched on films with SmolLM2-135M, where 1/60 of it for the matrices beat 1/6 in 24 "
    "steps; the paper has 0.3 and 0.4 for the prompt of T5-base, 5e-3 to 5e-4 for the matrices, batches of 32 and "
    "40,000 steps",
)
OFFSETS = ("position", "token")
INITS = ("sampled", "text")
ALPHA = 8.0
"""Divided by sqrt(rank), the scale of a position's offset. Source: the reference, `lora_alpha`."""
RANKS = {"position": 45, "token": 19}
"""With 40 and 60 virtual tokens, about as many parameters as 100 virtual tokens of width 768. Source: the references'
scripts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of DePT."""

    num_virtual_tokens: int = 40
    """Virtual tokens of the short prompt, at least 1. Source: the reference; ADePT's script has 60."""
    offset: str = "position"
    """What an offset depends on: the `"position"` in the text, as in DePT, or the `"token"` there, as in ADePT."""
    rank: int | None = None
    """Width between the two matrices; `None` for the papers' values, 45 for `"position"` and 19 for `"token"`."""
    max_length: int = 256
    """Number of positions that have an offset with `"position"`. Source: the reference."""
    dropout: float | None = None
    """Probability that a feature between the matrices of `"token"` is zeroed in training; `None` for 0.1, as in
    ADePT's code. `"position"` has no dropout."""
    offset_learning_rate_ratio: float = 1 / 60
    """Learning rate of the matrices relative to that of the prompt. Source: the reference, 5e-3 / 0.3."""
    init: Any = dataclasses.field(default=None, metadata={"names": INITS})
    """Start of the prompt: `"sampled"` frequent words, a `"text"`, or another prompt: its saved folder, or
    `model.prompts[name]`. By default `"text"` if there is an `init_text`, otherwise `"sampled"`."""
    init_text: str | None = None
    """The text for `init="text"`, tokenized without special tokens, repeated or truncated to the prompt's length."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer, for `init="text"`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_choice("offset", self.offset, OFFSETS)
        if self.dropout is not None and self.offset != "token":
            raise ValueError(f"dropout is {self.dropout}, which offset={self.offset!r} does not use; leave it out")
        rank = RANKS[self.offset] if self.rank is None else self.rank
        dropout = 0.1 * (self.offset == "token") if self.dropout is None else self.dropout
        zoo.check_positive_integer("rank", rank)
        zoo.check_positive_integer("max_length", self.max_length)
        zoo.check_probability("dropout", dropout)
        zoo.check_positive("offset_learning_rate_ratio", self.offset_learning_rate_ratio)
        init = zoo.check_init(self.init, INITS, self.init_text, None, self.tokenizer)
        self.settle(rank=rank, init=init)


class PositionOffsets(nn.Module):
    """DePT's offsets: a low-rank table with one offset per position of the text."""

    def __init__(self, config: Config, hidden: int, options: dict[str, Any]) -> None:
        super().__init__()
        rank = config.rank or 0
        self.down = nn.Parameter(torch.empty(config.max_length, rank, **options))
        self.up = nn.Parameter(torch.empty(rank, hidden, **options))

    def initialize(self) -> None:
        """Start without offsets: the first matrix random, the second zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.up.zero_()

    def forward(self, text: zoo.Text) -> Tensor:
        """Return the offsets `(rows or 1, length, hidden)`."""
        table = ALPHA / math.sqrt(len(self.up)) * self.down @ self.up
        has_offset = text.positions < len(table)
        return table[text.positions.clamp(0, len(table) - 1)] * has_offset[..., None]


class TokenOffsets(nn.Module):
    """ADePT's offsets: a network shared by all tokens computes each token's offset from its embedding."""

    def __init__(self, config: Config, hidden: int, options: dict[str, Any]) -> None:
        super().__init__()
        rank = config.rank or 0
        self.down = nn.Parameter(torch.empty(hidden, rank, **options))
        self.down_bias = nn.Parameter(torch.empty(rank, **options))
        self.up = nn.Parameter(torch.empty(rank, hidden, **options))
        self.up_bias = nn.Parameter(torch.empty(hidden, **options))
        self.dropout = nn.Dropout(0.1 if config.dropout is None else config.dropout)

    def initialize(self) -> None:
        """Start without offsets: everything zero except the first matrix."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        for parameter in (self.down_bias, self.up, self.up_bias):
            parameter.zero_()

    def forward(self, text: zoo.Text) -> Tensor:
        """Return the offsets `(rows, length, hidden)`."""
        features = text.embeddings.to(self.down.dtype) @ self.down + self.down_bias
        return functional.relu(self.dropout(features)) @ self.up + self.up_bias


KINDS: dict[str, Any] = {"position": PositionOffsets, "token": TokenOffsets}


class Parameters(nn.Module):
    """The short prompt and the parameters of the offsets."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.embeddings = nn.Parameter(torch.empty(config.num_virtual_tokens, backbone.hidden_size, **options))
        self.offsets = KINDS[config.offset](config, backbone.hidden_size, options)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start the prompt from words, and without offsets."""
        self.offsets.initialize()
        self.embeddings.copy_(backbone.embed(_start_ids(config, backbone)))

    @torch.no_grad()
    def start_from(self, tokens: zoo.VirtualTokens) -> None:
        """Start the prompt from the plain tokens of another one, and without offsets."""
        if not isinstance(tokens, zoo.InputTokens):
            raise zoo.UnsupportedError(
                "dept cannot start from keys and values; give a prompt at the input embeddings as init"
            )
        self.offsets.initialize()
        self.embeddings.copy_(tokens.embeddings)


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters) -> zoo.VirtualTokens:
    """Return the short prompt."""
    return zoo.InputTokens(parameters.embeddings)


@zoo.hookimpl
def map_text(parameters: Parameters, text: zoo.Text) -> Tensor:
    """Shift the embeddings of the text, but not of generated tokens."""
    moved = text.embeddings + parameters.offsets(text)
    return torch.where(text.mask[..., None], moved, text.embeddings)


@zoo.hookimpl
def parameter_groups(config: Config, parameters: Parameters, learning_rate: float) -> list[dict[str, Any]]:
    """Give the matrices their own learning rate."""
    return [
        {"params": [parameters.embeddings], "lr": learning_rate},
        {"params": [*parameters.offsets.parameters()], "lr": learning_rate * config.offset_learning_rate_ratio},
    ]


def _start_ids(config: Config, backbone: zoo.Backbone) -> Tensor:
    """Return the token ids that the prompt starts from."""
    count = config.num_virtual_tokens
    if config.init != "text":
        return zoo.sampled_ids(backbone, count)
    if config.tokenizer is None:
        raise ValueError(f"init_text is {config.init_text!r} and needs tokenizer=…; pass the model's tokenizer")
    ids = config.tokenizer(config.init_text, add_special_tokens=False)["input_ids"]
    if not ids or max(ids) >= backbone.vocab_size:
        raise ValueError(
            f"init_text is {config.init_text!r}, with the ids {ids}; give a text with tokens of this model, which has "
            f"{backbone.vocab_size} embeddings"
        )
    return torch.tensor((ids * -(-count // len(ids)))[:count], device=backbone.device)
