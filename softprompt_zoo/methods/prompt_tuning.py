"""Prompt tuning: trains the embeddings of virtual tokens in front of the text.

    virtual_tokens = embeddings                       (tokens, hidden)
    input = [virtual_tokens; embed(text)]             (tokens + length, hidden)

Enters at: input embeddings; in front of a causal model's text, or of an encoder's.
Trained: tokens * hidden.
Merges to: itself.

Source: Lester, Al-Rfou and Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021
(arXiv 2104.08691), section 2; reference code google-research/prompt-tuning, `prompt_tuning/prompts.py`.
Differs from the source: `init="labels"` fills the rows after the labels with sampled words, as its
configurations do; a text shorter than the prompt is repeated instead of padded.
PEFT: PROMPT_TUNING. Its sampled initialization draws from the whole vocabulary, ours from the frequent part.
"""

import dataclasses
from typing import Any

import torch
from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.hookspecs import hookimpl
from softprompt_zoo.methods.parts.initialization import INITS, initial_embeddings
from softprompt_zoo.methods.parts.start_options import check_init
from softprompt_zoo.methods.parts.starting import embeddings_of
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

ALIASES = ("prompt", "soft_prompt")
PEFT_TYPES = ("PROMPT_TUNING",)
HOLDS_PLAIN = InputTokens
RECIPE = Recipe(
    learning_rate=3e-2,
    steps=200,
    source="the best of 3e-3, 1e-2 and 3e-2 on E2E with SmolLM2-135M, 20 tokens (benchmarks/compare_with_peft.py); "
    "200 steps train films well, too (benchmarks/recipes.py)",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of prompt tuning."""

    init: Any = dataclasses.field(default=None, metadata={"names": INITS})
    """`"sampled"` frequent words, a `"text"`, class `"labels"`, `"random"` numbers uniform in ±0.5
    (Lester et al. 2021, section 2.1), or another prompt: its saved folder, or `model.prompts[name]`.
    The default follows `init_text` or `labels` if one is given, otherwise it is `"sampled"`."""
    init_text: str | None = None
    """The text of `init="text"`, tokenized without special tokens, repeated or cut to the prompt."""
    labels: tuple[str, ...] | None = None
    """The labels of `init="labels"`: row i is the mean embedding of label i's tokens; those beyond the prompt are left
    out."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer, for `"text"` and `"labels"`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settle(init=check_init(self.init, INITS, self.init_text, self.labels, self.tokenizer))


class Parameters(nn.Module):
    """The trained embeddings."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        shape = (config.num_virtual_tokens, backbone.hidden_size)
        self.embeddings = nn.Parameter(torch.empty(shape, dtype=dtype, device=backbone.device))

    @torch.no_grad()
    def initialize(self, config: Config, backbone: Backbone) -> None:
        """Set the initial embeddings, on the scale of the embedding module's output."""
        self.embeddings.copy_(initial_embeddings(config, backbone))

    @torch.no_grad()
    def start_from(self, tokens: VirtualTokens) -> None:
        """Start from the plain tokens of another prompt."""
        self.embeddings.copy_(embeddings_of(tokens, "prompt_tuning"))


@hookimpl
def build_virtual_tokens(parameters: Parameters) -> VirtualTokens:
    """Return the embeddings as they are."""
    return InputTokens(parameters.embeddings)
