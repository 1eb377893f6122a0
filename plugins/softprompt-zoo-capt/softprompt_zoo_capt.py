"""CaPT: trains one vector per layer, to which the mean of the row's own text is added: a capsule in front of the text.

    m = mean of the embeddings of the row's text                      (hidden)
    S[layer] = vectors[layer] + m                                     (tokens, hidden), tokens = 1 in the paper
    K, V = key and value projections of the layer, frozen             of S[layer], not rotated
    attention[layer] = softmax(query [K; text keys]^T) [V; text values]
    virtual_tokens = vectors + m                                      (tokens, hidden), deep=False

Enters at: keys and values of every self-attention layer of the stack that reads the text; with deep=False at the input
embeddings. Different virtual tokens for every row.
Trained: layers * tokens * hidden; with deep=False tokens * hidden.
Merges to: nothing; the tokens are computed anew for each text.

Source: Liu, Liang, Fan, Yang, Cui, Han, Huang, Liu, Wang and Han, "All You Need is One: Capsule Prompt Tuning with a
Single Vector", 2025 (NeurIPS 2025, arXiv 2510.16670), section 3. No reference code was found.
Differs from the source: from the second layer on, the paper adds the mean of the previous layer's outputs for the text
and the capsule; here every layer adds the mean of the embeddings, because the capsule is computed before the layers
run. The layer's norm before attention is left out, because keys and values are computed after it. The vectors start
from words. Of the paper's ways to combine vector and mean, this is the sum, its default.
PEFT: none of its types can hold a prompt that depends on the text.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import softprompt_zoo as zoo

ALIASES = ("capsule_prompt_tuning",)
RECIPE = zoo.Recipe(
    learning_rate=1e-2,
    steps=200,
    source="the best of 3e-3, 1e-2 and 3e-2 in 30 steps on films with SmolLM2-135M (benchmarks/recipes.py --steps 30 "
    "--rows 100); the paper trains with Adafactor, batches of 16 to 32 and up to 50 epochs",
)
EXAMPLE_OPTIONS = ({"num_virtual_tokens": 1}, {"num_virtual_tokens": 2})
INITS = ("sampled", "random")
STANDARD_DEVIATION = 0.02
"""For `init="random"`; the value that Hugging Face uses for new modules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of CaPT."""

    num_virtual_tokens: int = 1
    """Capsules per layer, at least 1; the paper finds that one is best."""
    deep: bool = True
    """Whether every layer has its own capsule; `False` for one at the input embeddings, which passes through all layers
    like a word."""
    init: Any = dataclasses.field(default="sampled", metadata={"names": INITS})
    """Start of the vectors: `"sampled"` frequent words, the same in every layer; `"random"` normal numbers with
    standard deviation 0.02; or another prompt at the input embeddings: its saved folder, or `model.prompts[name]`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_choice("deep", self.deep, (False, True))
        zoo.check_init(self.init, INITS, None, None, None)


class Parameters(nn.Module):
    """The vectors of each layer."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        layers = _num_layers(backbone) if config.deep else 1
        self.vectors = nn.Parameter(torch.empty(layers, config.num_virtual_tokens, backbone.hidden_size, **options))

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start from words, or from noise."""
        if config.init == "random":
            self.vectors.normal_(std=STANDARD_DEVIATION)
        else:
            self.vectors.copy_(backbone.embed(zoo.sampled_ids(backbone, config.num_virtual_tokens)))

    @torch.no_grad()
    def start_from(self, tokens: zoo.VirtualTokens) -> None:
        """Start every layer from the plain tokens of another prompt."""
        if not isinstance(tokens, zoo.InputTokens):
            raise zoo.UnsupportedError(
                "capt cannot start from keys and values; give a prompt at the input embeddings as init"
            )
        self.vectors.copy_(tokens.embeddings)

    def forward(self, text: zoo.Text) -> Tensor:
        """Return the sum of vectors and mean, `(layers, rows, tokens, hidden)`; gradients flow to the vectors."""
        mask = text.mask[..., None]
        means = (text.embeddings * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return self.vectors[:, None] + means.to(self.vectors)


@zoo.hookimpl
def build_virtual_tokens(
    config: Config, parameters: Parameters, backbone: zoo.Backbone, text: zoo.Text
) -> zoo.VirtualTokens:
    """Add vectors and mean, and project the sum to each layer's keys and values."""
    capsules = parameters(text)
    if not config.deep:
        return zoo.InputTokens(capsules[0])
    rows = capsules.shape[1]
    made = backbone.project(text.site, capsules.flatten(1, 2).unbind()).sites[text.site]
    return zoo.LayerTokens({text.site: zoo.SiteTokens(*(_by_rows(part, rows) for part in (made.keys, made.values)))})


def _num_layers(backbone: zoo.Backbone) -> int:
    site = "decoder" if backbone.family == "causal" else "encoder"
    if site not in backbone.layers:
        raise zoo.UnsupportedError(
            f"capt needs keys and values, which cannot be reached in this model ({backbone.model_type}); choose "
            "deep=False for one capsule at the input embeddings"
        )
    return len(backbone.layers[site])


def _by_rows(layers: tuple[Tensor | None, ...], rows: int) -> tuple[Tensor, ...]:
    """Reshape each layer's `(kv_heads, rows * tokens, width)` to `(rows, kv_heads, tokens, width)`."""
    return tuple(layer.unflatten(1, (rows, -1)).transpose(0, 1) for layer in layers if layer is not None)
