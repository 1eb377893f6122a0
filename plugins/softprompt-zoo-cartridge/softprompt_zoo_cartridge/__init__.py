"""Cartridge: trains the keys and values of a long document, shorter than the document, at every layer.

    keys[layer], values[layer] = [frozen; trained]                    (kv_heads, tokens, head_dim)
    attention[layer] = softmax(query [keys; text keys]^T + [scores; 0]) [values; text values]
    loss = - sum_t sum_j p_tj log q_tj / labels                       j over the top_k words of p_t

where q_t is the model's prediction at position t of a conversation after the cartridge, and p_t that of the
same frozen model after the whole document.

Enters at: keys and values of every layer of a causal model.
Trained: (tokens - frozen tokens) * layers * 2 * kv_heads * head_dim; with scores, tokens * layers * kv_heads more.
Merges to: itself.

Source: Eyuboglu, Ehrlich, Arora et al., "Cartridges: Lightweight and general-purpose long context
representations via self-study", 2025 (arXiv 2506.06266); reference code HazyResearch/cartridges, `cache.py`,
`train.py`, `initialization/text.py`, `synthesizers/self_study.py`.
Differs from the source: the teacher sees the whole document in every step, while the reference stores its predictions
after a chunk; the chat template's text after the document is kept whole; kept in float32. Scores, and
`match_attention`, an initialization without training, are from Zweiger, Fu, Guo and Kim, 2026 (arXiv 2602.16284).
PEFT: CARTRIDGE; merged, PREFIX_TUNING.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import softprompt_zoo as zoo
from softprompt_zoo_cartridge.attention_matching import match_attention
from softprompt_zoo_cartridge.document import Document, needed, set_document
from softprompt_zoo_cartridge.loss import distillation_loss
from softprompt_zoo_cartridge.matching import Matched
from softprompt_zoo_cartridge.peft_files import KEY, cartridge_fields, frozen_rows
from softprompt_zoo_cartridge.study import SEED_PROMPTS, collate, self_study
from softprompt_zoo_cartridge.text import document_ids, turn

__all__ = [
    "RECIPE",
    "SEED_PROMPTS",
    "Config",
    "Parameters",
    "collate",
    "match_attention",
    "self_study",
    "set_document",
    "turn",
]

ALIASES = ("cartridges",)
PEFT_TYPES = ("CARTRIDGE",)
RECIPE = zoo.Recipe(
    learning_rate=2e-2,
    steps=2048,
    batch_size=64,
    warmup_steps=0,
    schedule="constant",
    source="HazyResearch/cartridges, scripts/longhealth_train.py: Llama-3.2-3B, 2,048 tokens, 2 epochs of 65,536 "
    "conversations; not tried here at that size",
)
SITE = "decoder"
INITS = ("text", "sampled", "random")
LOSSES = ("logits", "tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of cartridge."""

    num_frozen_tokens: int = 1
    """Number of first tokens that are not trained, less than `num_virtual_tokens`: every query's attention sink."""
    init: Any = dataclasses.field(default=None, metadata={"names": (None, "sampled", "random")})
    """The model's own keys and values of the first tokens of a `"text"` (the default if there is one) or of
    `"sampled"` frequent words (otherwise the default), `"random"` standard normal numbers, or another prompt."""
    init_text: str | None = dataclasses.field(default=None, metadata={"saved": False}, repr=False)
    """The text for `init="text"`, repeated or truncated to the cartridge's length; `None` for the document. Not
    saved."""
    document: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The document that the teacher sees: a text, or token ids. Not saved: see `set_document`."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer, for texts."""
    chat: bool = False
    """Whether texts are put into a system message by the tokenizer's chat template."""
    loss: str | None = None
    """`"logits"`: distillation of the teacher's predictions (the default if there is a document); `"tokens"`: the
    model's own loss (otherwise the default)."""
    top_k: int = 20
    """How many of the teacher's most likely words are compared, at least 1; at most all of the vocabulary. Source: the
    reference."""
    scores: bool = False
    """Whether each token has a trained number per key-value head that is added to its attention scores, initially zero.
    PEFT cannot hold it."""
    always_visible: bool = False
    """Keeps the cartridge visible after a sliding window has moved past it; PEFT cannot reproduce that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        frozen = self.num_frozen_tokens
        if isinstance(frozen, bool) or not isinstance(frozen, int):
            raise TypeError(f"num_frozen_tokens is {frozen!r} ({type(frozen).__name__}); expected an integer")
        if not 0 <= frozen < self.num_virtual_tokens:
            most = self.num_virtual_tokens - 1
            raise ValueError(
                f"num_frozen_tokens is {frozen}; expected {f'0 to {most}' if most else 0}, for at least one of the "
                f"{self.num_virtual_tokens} virtual tokens is trained"
            )
        zoo.check_choice("chat", self.chat, (False, True))
        zoo.check_choice("loss", self.loss, (None, *LOSSES))
        zoo.check_choice("scores", self.scores, (False, True))
        zoo.check_choice("always_visible", self.always_visible, (False, True))
        zoo.check_positive_integer("top_k", self.top_k)
        has_document = self.document is not None
        # Defaults are resolved here, so that a saved prompt records what it was trained with.
        if self.loss is None:
            self.settle(loss="logits" if has_document else "tokens")
        starts_from_document = has_document and self.init_text is None and self.init in (None, "text")
        text = "the document" if starts_from_document else self.init_text
        self.settle(init=zoo.check_init(self.init, INITS, text, None, self.tokenizer))


class Parameters(nn.Module):
    """The frozen and the trained keys and values `(tokens, features)`, and the teacher's document."""

    frozen: Tensor
    """A buffer, so neither an optimizer nor `requires_grad_` affects it."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        if backbone.family != "causal" or SITE not in backbone.layers:
            raise zoo.UnsupportedError(
                f"cartridge needs the keys and values of a causal model, but this model is of the family "
                f"{backbone.family!r}; choose a causal model, or another method"
            )
        features = sum(layer.features for layer in backbone.layers[SITE])
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        frozen = config.num_frozen_tokens
        shape = (config.num_virtual_tokens, features)
        values = torch.empty(shape, dtype=dtype, device=backbone.device)
        self.register_buffer("frozen", values[:frozen].clone())
        self.trained = nn.Parameter(values[frozen:].clone())
        self.scores: nn.Parameter | None = None
        if config.scores:
            heads = sum(layer.kv_heads for layer in backbone.layers[SITE])
            self.scores = nn.Parameter(values.new_zeros(heads, config.num_virtual_tokens))
        self.document: Document | None = None
        if config.document is not None:
            self.document = Document.given(config.document, config, backbone, config.tokenizer)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start from the keys and values that the frozen model computes for the first tokens of the text."""
        count = config.num_virtual_tokens
        if config.init == "random":
            self.frozen.normal_()
            self.trained.normal_()
            return
        if config.init == "text":
            in_place: tuple[str, Any] = ("document", config.document)
            name, source = in_place if config.init_text is None else ("init_text", config.init_text)
            options: dict[str, Any] = {"chat": config.chat, "vocab_size": backbone.vocab_size, "count": count}
            ids = document_ids(source, config.tokenizer, **options, option=name).to(backbone.device)
        else:
            ids = zoo.sampled_ids(backbone, count)
        self._copy(backbone.keys_values(ids).sites[SITE])

    @torch.no_grad()
    def start_from(self, tokens: zoo.VirtualTokens) -> None:
        """Start from the plain tokens of another prompt."""
        if not isinstance(tokens, zoo.LayerTokens) or set(tokens.sites) != {SITE} or tokens.sites[SITE].gates:
            raise zoo.UnsupportedError("cartridge starts from keys and values without gates; choose another init")
        if tokens.sites[SITE].scores is not None and self.scores is None:
            raise zoo.UnsupportedError("init has scores, which would be lost; choose scores=True, or another init")
        self._copy(tokens.sites[SITE])

    @torch.no_grad()
    def take(self, layers: Sequence[Matched]) -> None:
        """Take the results of attention matching, one per layer."""
        keys, values, scores = zip(*((layer.keys, layer.values, layer.scores) for layer in layers), strict=True)
        self._copy(zoo.SiteTokens(keys, values, scores=scores))

    def site_tokens(self, shapes: Sequence[Any]) -> zoo.SiteTokens:
        """Return keys, values and scores per layer, with the sizes in `shapes`; gradients flow."""
        tokens = zoo.unflatten_layers(torch.cat([self.frozen, self.trained]), shapes)
        if self.scores is None:
            return tokens
        return dataclasses.replace(tokens, scores=self.scores.split([shape.kv_heads for shape in shapes]))

    def _copy(self, site: zoo.SiteTokens) -> None:
        flat = zoo.flatten_layers(dataclasses.replace(site, scores=None))
        self.frozen.copy_(flat[: len(self.frozen)])
        self.trained.copy_(flat[len(self.frozen) :])
        if self.scores is not None:
            self.scores.zero_() if site.scores is None else self.scores.copy_(torch.cat(site.scores))


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    """Reshape frozen and trained tokens into keys and values per layer."""
    return zoo.LayerTokens({SITE: parameters.site_tokens(backbone.layers[SITE])})


@zoo.hookimpl
def inject(config: Config, tokens: zoo.VirtualTokens) -> zoo.Placement:
    """Place the tokens at the keys and values of every layer."""
    return zoo.Placement(tokens, always_visible=config.always_visible)


@zoo.hookimpl
def training_loss(
    config: Config, parameters: Parameters, backbone: zoo.Backbone, step: zoo.TrainingStep
) -> Tensor | None:
    """Compare the predictions after the cartridge with those of the same model after the whole document."""
    if config.loss == "tokens":
        return None
    logits, labels = step.output.get("logits"), step.inputs["labels"]
    if logits is None or logits.ndim != 3:
        raise zoo.UnsupportedError(
            "loss='logits' compares predicted words, but this model has a task head; use 'tokens'"
        )
    document = needed(parameters.document, "trains by self-study (loss='logits')")
    states = document.states(backbone, parameters.trained.device)
    length = len(document.ids) + labels.shape[1]
    if backbone.max_positions is not None and length > backbone.max_positions:
        raise ValueError(
            f"document and text have {length} tokens; the model has {backbone.max_positions} positions; shorten one"
        )
    teacher = step.run(states, labels=None).logits
    return distillation_loss(
        logits, teacher, labels.to(logits.device), config.top_k, step.inputs.get("num_items_in_batch")
    )


@zoo.hookimpl
def write_peft(config: Config, parameters: Parameters, backbone: zoo.Backbone) -> zoo.PeftFiles:
    """Write PEFT's CARTRIDGE, frozen rows first."""
    if parameters.scores is not None:
        raise zoo.UnsupportedError("PEFT's CARTRIDGE has no place for scores; create the cartridge with scores=False")
    fields = cartridge_fields(config, backbone.layers[SITE], backbone.takes_cache)
    return zoo.PeftFiles(fields, {KEY: torch.cat([parameters.frozen, parameters.trained])})


@zoo.hookimpl
def read_peft(fields: dict[str, Any], tensors: dict[str, Tensor], backbone: zoo.Backbone) -> zoo.PeftPrompt | None:
    """Read PEFT's CARTRIDGE; the frozen rows stay frozen."""
    if set(tensors) != {KEY} or tensors[KEY].ndim != 2:
        return None  # also a trained head, or not a prompt at all: the host reports what is wrong
    if backbone.family != "causal":
        raise zoo.UnsupportedError(f"PEFT's CARTRIDGE is for causal models; this one is {backbone.family!r}")
    flat = tensors[KEY]
    frozen = frozen_rows(fields, flat, backbone.layers[SITE])
    options = {"num_virtual_tokens": len(flat), "num_frozen_tokens": frozen, "init": "given"}
    return zoo.PeftPrompt(options, {"frozen": flat[:frozen].clone(), "trained": flat[frozen:].clone()})
