"""PrefixMemory-Tuning: trains a matrix per attention head, which adds to each layer what a prefix would have said.

    o = softmax(q [text keys]^T / sqrt(head_dim)) [text values]       the model's own attention
    o[head] = o[head] + phi(q[head]) M[layer, head]                   M (head_dim, value_dim)
    phi(x) = elu(x)                                                   or elu(x) + 1

Enters at: the output of every layer's attention, before its output projection; no virtual tokens.
Trained: the sum over layers of heads * head_dim * value_dim; with share_heads=True kv_heads * head_dim * value_dim.
Merges to: nothing; what is added depends on the query.

Source: Wang, Chen, Li, Liang, Lee, Kawaguchi and Hu, "PrefixMemory-Tuning: Modernizing Prefix-Tuning by Decoupling the
Prefix from Attention", 2025 (arXiv 2506.13674), first called Prefix-Tuning+.
Differs from the source: M starts at 0, so that the model is unchanged. The query is that of attention, after rotary
embedding. Encoders, and the cross-attention of encoder-decoders, have a memory, too. Neither the authors' code nor the
paper's section on it was available: the equation follows the abstract and summaries by others.
PEFT: none.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import softprompt_zoo as zoo

ALIASES = ("prefix_memory_tuning", "prefix_tuning_plus")
RECIPE = zoo.Recipe(
    learning_rate=3e-4,
    steps=200,
    source="the best of 1e-4, 3e-4, 1e-3, 3e-3 and 1e-2 in 20 steps of 8 films with SmolLM2-135M, share_heads=True, "
    "one seed and 60 rows (losses of 0.239, 0.206, 0.693, 0.898 and 0.759); the steps are those of other methods",
)
SITES = ("encoder", "decoder", "cross")
SHIFTS = {"elu": 0.0, "elu+1": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of PrefixMemory-Tuning."""

    num_virtual_tokens: int = 0
    """Always 0: there are none."""
    feature_map: str = "elu"
    """phi: `"elu"`, or `"elu+1"`, which is positive (Katharopoulos et al., 2020)."""
    share_heads: bool = False
    """Whether query heads that share keys and values also share a matrix, as they share a prefix."""
    sites: tuple[str, ...] | None = None
    """Sites of an encoder-decoder, any of `"encoder"`, `"decoder"`, `"cross"`; `None` for all sites of the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_choice("feature_map", self.feature_map, tuple(SHIFTS))
        zoo.check_choice("share_heads", self.share_heads, (False, True))
        for site in self.sites or ():
            zoo.check_choice("sites", site, SITES)
        if self.sites is not None and not self.sites:
            raise ValueError(f"sites is {self.sites!r}; expected a tuple with at least one of {', '.join(SITES)}")


class Parameters(nn.Module):
    """The matrices per site and layer, each `(heads or kv_heads, head_dim, value_dim)`."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.memories = nn.ModuleDict()
        for site in _sites(config, backbone):
            shapes = [
                (layer.kv_heads if config.share_heads else layer.heads, layer.head_dim, layer.value_size[1])
                for layer in backbone.layers[site]
            ]
            self.memories[site] = nn.ParameterList(nn.Parameter(torch.empty(shape, **options)) for shape in shapes)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start from an empty memory, so that the model is unchanged."""
        for memory in self.parameters():
            memory.zero_()


def _sites(config: Config, backbone: zoo.Backbone) -> tuple[str, ...]:
    """Return the sites that have a memory."""
    sites = tuple(backbone.layers) if config.sites is None else config.sites
    absent = [site for site in sites if site not in backbone.layers]
    if absent or not sites:
        raise zoo.UnsupportedError(
            f"prefix_memory adds to attention, but this model's {absent[0] if absent else 'attention'} cannot be "
            f"reached; it has the sites {tuple(backbone.layers)}"
        )
    return sites


@zoo.hookimpl
def attend(
    config: Config, parameters: Parameters, site: str, layer: int, query: Tensor, output: Tensor
) -> Tensor | None:
    """Read a layer's memory with its queries `(rows, heads, length, head_dim)`."""
    if site not in parameters.memories:
        return None
    memory: Tensor = parameters.memories[site][layer]  # type: ignore[index]
    memory = memory.repeat_interleave(query.shape[1] // memory.shape[0], dim=0)
    features = functional.elu(query.to(memory.dtype)) + SHIFTS[config.feature_map]
    return (features @ memory).transpose(1, 2).to(output.dtype)
