"""P-tuning v2: trains keys and values of virtual tokens for every layer, and the task head along with them.

    prompt = embeddings                                               direct
    prompt = W2 tanh(W1 embeddings + b1) + b2                         reparameterization="mlp"
    keys[layer], values[layer] = dropout(prompt)                      (kv_heads, tokens, head_dim)
    attention[layer] = softmax(query [keys; text keys]^T) [values; text values]
    logits = head(text states)                                        the head is trained, too

Enters at: keys and values of every self-attention layer; in an encoder-decoder, of both stacks.
Trained: tokens * layers * 2 * kv_heads * head_dim; with the network, its weights too; and the task head.
Merges to: the direct prompt; the head stays.

Source: Liu, Ji, Fu, Tam, Du, Yang and Tang, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning
Universally Across Scales and Tasks", 2022 (arXiv 2110.07602), section 3; reference code THUDM/P-tuning-v2,
`model/prefix_encoder.py` and `model/sequence_classification.py`.
Differs from the source: the default starts from the model's own keys and values of words, not from normal
numbers; dropout is off by default (theirs is 0.1); the head is of the model's own kind, whereas theirs is one
linear layer on the pooler; causal models and encoder-decoders are supported, too.
PEFT: PREFIX_TUNING with the head in `modules_to_save`; PEFT's own files of that type belong to another method.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_probability, check_reparameterization
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
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

ALIASES = ("ptuning_v2", "deep_prompt_tuning")
PEFT_TYPES = ()
RECIPE = Recipe(
    learning_rate=2e-2,
    steps=200,
    batch_size=16,
    source="the best of 5e-3, 1e-2, 2e-2 and 5e-2 on films with MiniLM, 20 tokens (benchmarks/recipes.py); the "
    "reference's scripts for BoolQ and RTE have 5e-3 to 1e-2 and batches of 32 for many epochs",
)
INITS = ("sampled", "text", "random")
NET_SIZE = 512
"""Default hidden width of the network. Source: the reference's `prefix_hidden_size`."""
STANDARD_DEVIATION = 0.02
"""For `init="random"`. Source: the reference's `initializer_range`, Hugging Face's default for new modules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of P-tuning v2."""

    train_head: bool = True
    """Also trains the task head, as a copy that belongs to the prompt. Language models have no task head."""
    init: Any = dataclasses.field(default=None, metadata={"names": INITS})
    """The model's own keys and values of `"sampled"` frequent words or of a `"text"`, `"random"` normal numbers
    of standard deviation 0.02 (the reference's), or another prompt: its saved folder, or `model.prompts[name]`.
    By default `"text"` if there is an `init_text`, otherwise `"sampled"`."""
    init_text: str | None = None
    """The text of `init="text"`, tokenized without special tokens, repeated or cut to the prompt."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer, for `init="text"`."""
    reparameterization: str | None = None
    """`"mlp"` computes the prompt with a two-layer network during training (the reference's `prefix_projection`)."""
    reparameterization_size: int | None = None
    """Hidden width of the network, in features; by default 512, as in the reference."""
    dropout: float = 0.0
    """Probability that an element of a key or value is zeroed during training, drawn for each row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settle(init=check_init(self.init, INITS, self.init_text, None, self.tokenizer))
        check_reparameterization(self.reparameterization, self.reparameterization_size, ("mlp",))
        check_probability("dropout", self.dropout)


class Parameters(nn.Module):
    """The trained keys and values of each stack."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        sites = _sites(backbone)
        size = (config.reparameterization_size or NET_SIZE) if config.reparameterization == "mlp" else None
        self.tables = nn.ModuleDict(
            {site: LayerTable(backbone, site, config.num_virtual_tokens, size) for site in sites}
        )

    @torch.no_grad()
    def initialize(self, config: Config, backbone: Backbone) -> None:
        """Start from the keys and values that the frozen model computes for real words, or from noise."""
        if config.init == "random":
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=STANDARD_DEVIATION)
                else:
                    parameter.zero_()
            return
        text = config.init_text if config.init == "text" else None
        self._fit(keys_values_of_words(backbone, config.num_virtual_tokens, text, config.tokenizer).sites)

    def start_from(self, tokens: VirtualTokens) -> None:
        """Start from the plain tokens of another prompt."""
        sites = sites_of(tokens)
        if not set(self.tables) <= set(sites):
            raise UnsupportedError(
                f"p_tuning_v2 cannot start from this prompt; give one with keys and values at {', '.join(self.tables)}"
            )
        self._fit(sites)

    def _fit(self, sites: Mapping[str, SiteTokens]) -> None:
        for site, table in self.tables.items():
            table.fit(flatten_layers(sites[site]))  # type: ignore[operator]


def _tokens(parameters: Parameters) -> LayerTokens:
    return LayerTokens({site: table() for site, table in parameters.tables.items()})


@hookimpl
def build_virtual_tokens(parameters: Parameters) -> VirtualTokens:
    """Shape the prompt of each stack into keys and values per layer."""
    return _tokens(parameters)


@hookimpl
def inject(config: Config, tokens: VirtualTokens) -> Placement:
    """Place them at the keys and values of every layer."""
    return Placement(tokens, dropout=config.dropout)


def _sites(backbone: Backbone) -> list[str]:
    sites = [site for site in backbone.layers if site != "cross"]
    if not sites:
        raise UnsupportedError(
            f"p_tuning_v2 needs keys and values, which cannot be reached in this model ({backbone.model_type}); "
            "choose a method at the input embeddings"
        )
    return sites
