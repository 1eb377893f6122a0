"""Context-aware prompt tuning: trains small offsets of the embeddings of few-shot examples, each held in a ball.

    virtual_tokens = embed(examples) + project(offsets)               (tokens, hidden)
    project(offset[j]) = offset[j] * min(1, radius[j] / |offset[j]|)
    radius[j] = radius of its kind * sqrt(hidden / 2048)              0 for targets and separators
    loss = mean over target tokens of weight * cross entropy          text 1, newest example decay, then decay^2, …

Enters at: input embeddings, in front of a causal model's text.
Trained: tokens * hidden, of which the rows of targets and separators stay zero.
Merges to: the embeddings plus the offsets.

Source: Blau, Kimhi, Belinkov, Bronstein and Baskin, "Context-aware Prompt Tuning: Advancing In-Context Learning
with Adversarial Methods", 2024 (arXiv 2410.17222); the authors published no code, the reference is PEFT,
`tuners/cpt/model.py` and `_cpt_forward` in `peft_model.py`.
Differs from the source: offsets are projected after each optimizer step and whenever tokens are built, never written
in a forward; the text's target tokens are those with labels, no mask of types is needed; one template instead of four;
spaces in front of a field belong to the field, as in tokenizers; examples get no end-of-sequence token unless the
template contains one.
PEFT: CPT; once merged, PROMPT_TUNING. PEFT's files hold only the sum; embeddings of their token ids are subtracted.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_not_negative
from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.exchange import PeftFiles, PeftPrompt, TrainingStep
from softprompt_zoo.hookspecs import hookimpl
from softprompt_zoo.methods.parts import example_tokens
from softprompt_zoo.methods.parts.demonstrations import read_pairs, split_template, tokenize_row
from softprompt_zoo.methods.parts.labels import labeled_predictions, share_of_step
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

ALIASES = ("context_aware_prompt_tuning", "context_aware")
PEFT_TYPES = ("CPT",)
RECIPE = Recipe(
    learning_rate=1e-3,
    steps=60,
    batch_size=1,
    source="the best of 1e-4, 1e-3 and 1e-2 on films from 8 examples with SmolLM2-135M (benchmarks/recipes.py); PEFT's "
    "notebook examples/cpt_finetuning has 1e-4 and 500 steps (BLOOM-1.7B, SST-2, 10 examples)",
)
EXAMPLE_OPTIONS = (
    {"token_ids": (5, 11, 12, 6, 21, 7, 5, 13, 6, 22, 23, 7), "token_types": (1, 2, 2, 3, 4, 0, 5, 6, 7, 8, 8, 0)},
    {
        "token_ids": (5, 11, 12, 6, 21, 7, 5, 13, 6, 22, 7, 5, 14, 6, 24),
        "token_types": (*range(5), 0, *range(5, 9), 0, *range(9, 13)),
    },
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of context-aware prompt tuning."""

    num_virtual_tokens: int = 0
    """Number of tokens in the examples: counted, not chosen. 0 until then; any value but their count is refused."""
    examples: Any = ()
    """Pairs `(input, target)`, or dictionaries with these fields, in the order in which the model reads them."""
    template: str | None = "input: {input} output: {target}\n"
    """The format of an example; anything after the target is a separator. `None` if only token ids are known."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer. A saved prompt does not need one: it has the token ids."""
    radius: float = 0.2
    """How far an input token may move: largest L2 norm of its offset at a width of 2048. Source: PEFT's notebook."""
    format_radius: float = 0.1
    """The same for template tokens in front of the target. Source: PEFT's notebook."""
    decay: float = 0.95
    """Weight of the newest example's target in the loss; of the one before it `decay ** 2`, and so on. 1 for no
    decay. Source: PEFT's notebook."""
    token_ids: tuple[int, ...] | None = None
    """The tokens, instead of examples and a tokenizer."""
    token_types: tuple[int, ...] | None = None
    """The type of each token: of example i, from 0, `4 i + 1` template, `4 i + 2` input, `4 i + 3` template, `4 i + 4`
    target; 0 for separators."""

    def __post_init__(self) -> None:
        for name, value in (("radius", self.radius), ("format_radius", self.format_radius), ("decay", self.decay)):
            check_not_negative(name, value)
        if self.template is not None:
            split_template(self.template)
        self.settle(examples=read_pairs(self.examples))
        found = example_tokens.count_tokens(
            self.examples, self.template, self.tokenizer, self.token_ids, self.token_types
        )
        if found is None:
            return  # the tokenizer is set later
        if self.num_virtual_tokens not in (0, len(found[0])):
            raise ValueError(
                f"num_virtual_tokens is {self.num_virtual_tokens!r}; the examples have {len(found[0])} tokens, which "
                "are counted and not chosen: leave it out, or change the examples"
            )
        self.settle(token_ids=found[0], token_types=found[1], num_virtual_tokens=len(found[0]))
        super().__post_init__()

    def advice_to_shorten(self, most: int) -> str:
        """Return where the number of tokens comes from."""
        return f"they are the tokens of the examples: give fewer or shorter ones, of at most {most} tokens together"

    def encode(self, tokenizer: Any, text: str, target: str | None = None) -> dict[str, list[int]]:
        """Tokenize a text in the same way as the examples, for training or, without a target, to generate one.

        Args:
            tokenizer: The model's tokenizer.
            text: The text for `{input}`.
            target: The text for `{target}`; without it, the text ends before that field.

        Returns:
            `input_ids`, `attention_mask` and, with a target, `labels`: the ids of its tokens, -100 elsewhere.

        Raises:
            TypeError: If the tokenizer is not one, or the text or the target is not a text.
            ValueError: If the template is unknown, or the target has no tokens.
        """
        return tokenize_row(tokenizer, self.template, text, target)


class Parameters(nn.Module):
    """The offsets, and the embeddings of the examples that they start from."""

    context: Float[Tensor, "tokens hidden"]

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        example_tokens.check_predicts_words(backbone)
        example_tokens.check_tokens(config.token_ids, config.token_types, backbone.vocab_size)
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        empty = torch.empty(config.num_virtual_tokens, backbone.hidden_size, dtype=dtype, device=backbone.device)
        self.offsets = nn.Parameter(empty)
        # Not embedded again in each forward: the prompt stays as it was trained if the table changes.
        self.register_buffer("context", torch.empty_like(empty))

    @torch.no_grad()
    def initialize(self, config: Config, backbone: Backbone) -> None:
        """Start from the examples themselves: plain in-context learning."""
        self.offsets.zero_()
        self.context.copy_(backbone.embed(torch.tensor(config.token_ids, device=backbone.device)))


@hookimpl
def build_virtual_tokens(config: Config, parameters: Parameters) -> VirtualTokens:
    """Add the projected offsets to the embeddings."""
    return InputTokens(parameters.context + _project(config, parameters.offsets))


@hookimpl
def training_loss(config: Config, step: TrainingStep) -> Float[Tensor, ""]:
    """Supervise the target tokens of the text and, with decaying weights, those of the examples."""
    context = step.virtual_logits()
    labels = step.inputs["labels"].to(context.device)
    logits, targets = labeled_predictions(step, labels)
    ids = torch.tensor(config.token_ids, device=context.device)
    places, newness = example_tokens.target_places(config.token_types or (), context.device)
    losses = functional.cross_entropy(context[places - 1].float(), ids[places], reduction="none")
    # The examples are the same in every row, and count once in each.
    total = functional.cross_entropy(logits.float(), targets, reduction="sum")
    total = total + len(labels) * (config.decay ** newness.float() * losses).sum()
    return total / (len(targets) + len(labels) * len(places)) * share_of_step(step, least=1)


@hookimpl
def after_step(config: Config, parameters: Parameters) -> None:
    """Project the offsets back into their balls."""
    parameters.offsets.copy_(_project(config, parameters.offsets))


@hookimpl
def write_peft(config: Config, parameters: Parameters, backbone: Backbone) -> PeftFiles:
    """Write the sum as PEFT's CPT, with all that further training needs; a merged prompt is PEFT's PROMPT_TUNING."""
    fields = {
        "peft_type": "CPT",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": config.num_virtual_tokens,
        "token_dim": backbone.hidden_size,
        "num_layers": len(backbone.layers["decoder"]),
        "num_attention_heads": backbone.layers["decoder"][0].heads,
        "num_transformer_submodules": 1,
        "cpt_token_ids": list(config.token_ids or ()),
        "cpt_mask": [1] * config.num_virtual_tokens,
        "cpt_tokens_type_mask": list(config.token_types or ()),
        "opt_weighted_loss_type": "none" if config.decay == 1 else "decay",
        "opt_loss_decay_factor": config.decay,
        "opt_projection_epsilon": config.radius,
        "opt_projection_format_epsilon": config.format_radius,
        "tokenizer_name_or_path": None,
    }
    return PeftFiles(fields, {"prompt_embeddings": parameters.context + _project(config, parameters.offsets)})


def _options_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the options that correspond to PEFT's fields."""
    decays = fields.get("opt_weighted_loss_type") == "decay"
    return {
        "token_ids": fields.get("cpt_token_ids") or (),
        "token_types": fields.get("cpt_tokens_type_mask") or (),
        "template": None,
        "radius": fields.get("opt_projection_epsilon", 0.1),
        "format_radius": fields.get("opt_projection_format_epsilon", 0.1),
        "decay": fields.get("opt_loss_decay_factor", 1.0) if decays else 1.0,
    }


@hookimpl
def read_peft(fields: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone) -> PeftPrompt:
    """Subtract the examples' embeddings from the sum; if the rest fits no ball, load the sum as a merged prompt."""
    options = _options_of(fields)
    try:
        config = Config.from_options(options)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"PEFT's CPT adapter is inconsistent: {error}") from error
    tensor = example_tokens.embeddings_of(tensors, (config.num_virtual_tokens, backbone.hidden_size))
    example_tokens.check_predicts_words(backbone)
    problem = example_tokens.problem_of_tokens(config.token_ids, config.token_types, backbone.vocab_size)
    if problem is None and backbone.device.type != "meta":
        context = backbone.embed(torch.tensor(config.token_ids, device=backbone.device)).float()
        offsets = tensor.to(context) - context
        if _fit_balls(config, offsets, context):
            return PeftPrompt(options, state={"offsets": offsets, "context": context})
    return PeftPrompt(options, tokens=InputTokens(tensor.float()))


def _fit_balls(config: Config, offsets: Float[Tensor, "tokens hidden"], start: Float[Tensor, "tokens hidden"]) -> bool:
    largest = (1 + 1e-5) * _radii(config, offsets) + 1e-6 * start.norm(dim=1)  # the sum was rounded to float32
    return bool((offsets.norm(dim=1) <= largest).all())


def _project(config: Config, offsets: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
    """Scale each row into its ball; for the gradient the factor is a constant, 1 in the ball and on its surface."""
    with torch.no_grad():
        radii = _radii(config, offsets)
        norms = offsets.norm(dim=1).maximum(radii)
        factors: Tensor = radii / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return offsets * factors[:, None]


def _radii(config: Config, offsets: Float[Tensor, "tokens hidden"]) -> Float[Tensor, " tokens"]:
    by_kind = offsets.new_tensor([0.0, config.format_radius, config.radius, config.format_radius])
    kinds = torch.tensor(config.token_types, device=offsets.device).remainder(4)
    return by_kind[kinds] * math.sqrt(offsets.shape[1] / 2048)
