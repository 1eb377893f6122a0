"""ATTEMPT: trains a prompt and a query that mixes frozen prompts of other tasks into it.

    P[1..t]                                                           (tokens, hidden), frozen: the sources
    P[t+1]                                                            (tokens, hidden), trained: the target
    key[j] = max over tokens of P[j]                                  (hidden)
    query = LayerNorm(W_up SiLU(W_down x))                            (hidden); x (hidden) and both W trained
    a = softmax over j of key[j] . query / temperature                (t + 1)
    virtual_tokens = P[t+1] + sum over j of a[j] * P[j]

Enters at: the input embeddings.
Trained: tokens * hidden + 2 * hidden * bottleneck + 3 * hidden.
Merges to: the virtual tokens it computes.

Source: Asai, Salehi, Peters and Hajishirzi, "ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of
Soft Prompts", 2022 (arXiv 2205.11961), section 2.3; reference code AkariAsai/ATTEMPT,
`attempt/third_party/models/t5/modeling_t5.py`.
Differs from the source: x is trained, while the paper uses the max-pooled text of each row. So the attention belongs to
the task and not to the row: there is one mixture per prompt, the same for every text, which can be merged without loss.
During training, the text of a causal model contains the answer, which attention over it would read. The temperature
follows the scale of the sources. Tasks do not share their attention.
PEFT: PROMPT_TUNING of the mixture; sources and attention are not carried over.
"""

import dataclasses
import math
import os
from typing import Any

import torch
from torch import Tensor, nn

import softprompt_zoo as zoo

RECIPE = zoo.Recipe(
    learning_rate=3e-2,
    steps=60,
    source="not searched; the order of magnitude of prompt tuning's. The paper's 0.3 is for T5-base, with batches of "
    "32 and 20 epochs",
)
EXAMPLE_OPTIONS = (
    {"num_virtual_tokens": 5, "sources": "sampled", "num_sources": 3, "bottleneck_size": 8},
    {"num_virtual_tokens": 7},
)
GIVEN = "given"
"""Replaces the given sources in a saved config; they are saved with the prompt."""
SAMPLED = "sampled"
INITS = (SAMPLED, "mean")
SAMPLED_SOURCES = 4
EXPECTED = (
    "expected sources=[…], a list of prompts (model.prompts[name]) or saved folders, or a tensor (sources, tokens, "
    "hidden); or 'sampled' for random words, to try it out"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of ATTEMPT."""

    sources: Any = dataclasses.field(default=None, metadata={"names": (), "prompts": True}, repr=False, compare=False)
    """The frozen prompts, at the input embeddings, each of `num_virtual_tokens`: a list of prompts or saved folders, or
    a tensor `(sources, tokens, hidden)`. They are copied and saved along. To try it out: `"sampled"` words."""
    num_sources: int | None = None
    """Number of sources; counted if they are given, 4 by default if they are `"sampled"`."""
    temperature: float | None = None
    """Divides the scores, a number above 0; `None` for e times the mean norm of the sources' keys, our choice: it has
    the same effect whether embeddings are large or small. The paper's is e * hidden, for T5."""
    init: Any = dataclasses.field(default=SAMPLED, metadata={"names": INITS})
    """Start of the target: `"sampled"` frequent words, as in the paper; `"mean"`, so that equal attention gives the
    mean of the sources; or another prompt: its saved folder, or `model.prompts[name]`."""
    bottleneck_size: int = 100
    """Width between the two layers of the query network, in features. Source: the reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_sources", _count(self.sources, self.num_sources))
        if self.temperature is not None:
            zoo.check_positive("temperature", self.temperature)
        zoo.check_init(self.init, INITS, None, None, None)
        zoo.check_positive_integer("bottleneck_size", self.bottleneck_size)


class Parameters(nn.Module):
    """The target and the query network, which are trained, and the sources, which are not."""

    sources: Tensor

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        tokens, hidden = config.num_virtual_tokens, backbone.hidden_size
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.target = nn.Parameter(torch.empty(tokens, hidden, **options))
        self.input = nn.Parameter(torch.empty(hidden, **options))
        # Without torch's initialization: loading a prompt draws no random numbers.
        self.down = nn.utils.skip_init(nn.Linear, hidden, config.bottleneck_size, bias=False, **options)
        self.up = nn.utils.skip_init(nn.Linear, config.bottleneck_size, hidden, bias=False, **options)
        self.norm = nn.LayerNorm(hidden, **options)
        assert config.num_sources is not None
        sources = torch.empty(config.num_sources, tokens, hidden, **options)
        if not _is_saved(config.sources):
            sources.copy_(_read_sources(config, backbone))
        self.register_buffer("sources", sources)
        self._config = config

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start the target as `init` says, and the query from the mean of the sources' keys."""
        self._start_query()
        if config.init == "mean":
            self.target.copy_(self.sources.mean(dim=0) / (self.sources.shape[0] + 2))
        else:
            self.target.copy_(backbone.embed(zoo.sampled_ids(backbone, config.num_virtual_tokens)))

    @torch.no_grad()
    def start_from(self, tokens: zoo.VirtualTokens) -> None:
        """Start the target from the plain tokens of another prompt."""
        if not isinstance(tokens, zoo.InputTokens):
            raise zoo.UnsupportedError(
                "attempt cannot start from keys and values; give a prompt at the input embeddings as init"
            )
        self._start_query()
        self.target.copy_(tokens.embeddings)

    def attention(self) -> Tensor:
        """Return the share of each source in the mixture, followed by that of the target.

        Returns:
            `(sources + 1,)`, with sum one; gradients flow to the target and to the query network.
        """
        sources = self.sources.amax(dim=1)
        keys = torch.cat([sources, self.target.amax(dim=0)[None]])
        query = self.norm(self.up(nn.functional.silu(self.down(self.input))))
        temperature = self._config.temperature
        scale = math.e * sources.norm(dim=-1).mean() if temperature is None else temperature
        return torch.softmax(keys @ query / scale, dim=0)

    def mixture(self) -> Tensor:
        """Return the virtual tokens `(tokens, hidden)`; gradients flow to all but the sources."""
        attention = self.attention()
        return (1 + attention[-1]) * self.target + torch.einsum("s,sth->th", attention[:-1], self.sources)

    def _start_query(self) -> None:
        if _is_saved(self._config.sources):
            raise ValueError(f"sources is {GIVEN!r}, which only saved prompts may have; {EXPECTED}")
        self.input.copy_(self.sources.amax(dim=1).mean(dim=0))
        self.down.reset_parameters()
        self.up.reset_parameters()
        self.norm.reset_parameters()


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters) -> zoo.VirtualTokens:
    """Mix the target and the sources."""
    return zoo.InputTokens(parameters.mixture())


def _is_saved(sources: Any) -> bool:
    return isinstance(sources, str) and sources == GIVEN


def _count(sources: Any, given: int | None) -> int:
    """Check the sources as far as possible without the model, and return their number."""
    if given is not None:
        zoo.check_positive_integer("num_sources", given)
    if sources is None:
        raise ValueError(f"attempt mixes frozen prompts, but none are given; {EXPECTED}")
    if isinstance(sources, str) and sources in (SAMPLED, GIVEN):
        return given or SAMPLED_SOURCES
    if isinstance(sources, Tensor):
        if sources.ndim != 3 or not sources.is_floating_point():
            raise ValueError(f"sources is a {sources.dtype} tensor of shape {tuple(sources.shape)}; {EXPECTED}")
    elif isinstance(sources, str):
        raise ValueError(f"sources is {sources!r}; {EXPECTED}; put a single folder into a list, too: [{sources!r}]")
    elif not isinstance(sources, tuple | list):
        raise TypeError(f"sources is {type(sources).__name__}; {EXPECTED}")
    else:
        for index, source in enumerate(sources):
            if not isinstance(source, str | os.PathLike) and not hasattr(source, "merged_tokens"):
                raise TypeError(f"sources[{index}] is {type(source).__name__}; expected a prompt or a saved folder")
    count = len(sources)
    if not count:
        raise ValueError(f"sources is empty; {EXPECTED}")
    if given not in (None, count):
        raise ValueError(f"num_sources is {given}, but {count} sources are given; leave num_sources out")
    return count


def _read_sources(config: Config, backbone: zoo.Backbone) -> Tensor:
    """Return the sources `(sources, tokens, hidden)`; the host has already read their folders."""
    if isinstance(config.sources, str):
        assert config.num_sources is not None
        words = [zoo.sampled_ids(backbone, config.num_virtual_tokens) for _ in range(config.num_sources)]
        return backbone.embed(torch.stack(words))
    read = [_read_source(index, source, config, backbone) for index, source in enumerate(config.sources)]
    return torch.stack([source.to(backbone.device) for source in read])


def _read_source(index: int, source: Any, config: Config, backbone: zoo.Backbone) -> Tensor:
    what = f"sources[{index}]"
    shape = (config.num_virtual_tokens, backbone.hidden_size)
    if isinstance(source, Tensor):
        embeddings = source.detach()
    else:
        if source.weight != 1.0:
            raise zoo.UnsupportedError(
                f"{what} has the weight {source.weight}, which a mixture cannot apply; set it to 1 with "
                "model.prompts.set_weight"
            )
        if source.num_virtual_tokens != config.num_virtual_tokens:
            raise zoo.UnsupportedError(
                f"{what} has {source.num_virtual_tokens} virtual tokens, but num_virtual_tokens is "
                f"{config.num_virtual_tokens}; give sources of the same length, and set num_virtual_tokens to it"
            )
        try:
            tokens = source.merged_tokens(backbone)
        except zoo.ShapeError as error:
            raise zoo.UnsupportedError(f"{what} was made for a model of different sizes: {error}") from error
        if not isinstance(tokens, zoo.InputTokens):
            raise zoo.UnsupportedError(f"{what} is at keys and values; give prompts at the input embeddings")
        embeddings = tokens.embeddings
        if embeddings.ndim == 3:
            raise zoo.UnsupportedError(
                f"{what} is a prompt with {embeddings.shape[0]} tasks; export the ones you want with "
                "zoo.export(model, folder, task=…), and give those folders"
            )
    if tuple(embeddings.shape) != shape:
        raise zoo.UnsupportedError(
            f"{what} has shape {tuple(embeddings.shape)}; expected (tokens, hidden) = {shape}: num_virtual_tokens is "
            f"{shape[0]}, and the model's embeddings have width {shape[1]}"
        )
    if embeddings.device.type != "meta" and not (embeddings.isfinite().all() and embeddings.any()):
        raise ValueError(f"{what} contains non-finite numbers or only zeros; give a trained prompt")
    return embeddings
