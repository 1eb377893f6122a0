"""Multitask prompt tuning: trains one prompt that tasks share, and low-rank factors that fit it to each task.

    virtual_tokens[task] = shared * (cols[task] @ rows[task])          (tasks, tokens, hidden)
    loss = task loss + distillation * (KL(teacher || student) + |hidden states of teacher - student|^2)

`shared` is (tokens, hidden), `cols` (tasks, tokens, rank), `rows` (tasks, rank, hidden); `*` is elementwise.

Enters at: input embeddings; in front of a causal model's text, or of an encoder's. Each row sees the task in
`task_ids`.
Trained: tokens * hidden + tasks * rank * (tokens + hidden).
Merges to: the virtual tokens of every task; rows still choose by `task_ids`.

Source: Wang, Panda, Karlinsky, Feris, Sun and Kim, "Multitask Prompt Tuning Enables Parameter-Efficient Transfer
Learning", 2023 (arXiv 2303.02861), section 3; reference code huggingface/peft, `tuners/multitask_prompt_tuning/`.
Differs from the source: the factors start such that every task's prompt is the shared one; `rank` may exceed 1;
hidden states are compared at the text's positions (and the decoder's), as virtual ones are not in the outputs; the
KL is computed where a label is predicted, and the temperature does not scale it.
PEFT: MULTITASK_PROMPT_TUNING. Its factors start at N(0, 0.02), `factor_init="normal"` here, which makes every prompt
almost zero.
"""

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_choice, check_not_negative, check_positive, check_positive_integer
from softprompt_zoo.config.options import GIVEN, MethodConfig
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import CheckpointError, UnsupportedError
from softprompt_zoo.exchange import PeftFiles, PeftPrompt, TrainingStep
from softprompt_zoo.hookspecs import hookimpl
from softprompt_zoo.methods.parts.distillation import (
    check_teacher,
    hidden_distance,
    logit_divergence,
    teacher_embeddings,
)
from softprompt_zoo.methods.parts.factors import check_factors, check_factors_fit
from softprompt_zoo.methods.parts.initialization import INITS, initial_embeddings
from softprompt_zoo.methods.parts.labels import share_of_step
from softprompt_zoo.methods.parts.source_tasks import check_source_task, embeddings_of_source, of_source
from softprompt_zoo.methods.parts.start_options import check_init
from softprompt_zoo.methods.parts.starting import embeddings_of
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

ALIASES = ("mpt", "multitask")
PEFT_TYPES = ("MULTITASK_PROMPT_TUNING",)
RECIPE = Recipe(
    learning_rate=3e-2,
    steps=60,
    source="best of 1e-2, 3e-2, 1e-1 on tweets and products, SmolLM2-135M (benchmarks/recipes.py); paper: 0.3 for T5",
)
EXAMPLE_OPTIONS = {"num_virtual_tokens": 5, "num_tasks": 3, "rank": 2}, {"num_virtual_tokens": 7}
ADAPTATION_RECIPE = Recipe(
    learning_rate=3e-3,
    steps=20,
    source="of 1e-2 x 20, 3e-3 x 20 and 3e-3 x 60 the best from 16 films; from 64 films 3e-3 x 60 was; after tweets "
    "and products with SmolLM2-135M (benchmarks/recipes.py)",
)
"""For a prompt that starts from another one (`init`) and sees few examples: it starts close, and can memorize them."""
FACTOR_INITS = ("identity", "normal")
DEVIATION = 0.02
"""Standard deviation for `factor_init="normal"`, as in PEFT."""
PEFT_NAMES = {"shared": "prompt_embeddings", "cols": "prefix_task_cols", "rows": "prefix_task_rows"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of multitask prompt tuning."""

    num_tasks: int = 1
    """Number of tasks; with more than one, `forward` and `generate` need `task_ids`."""
    rank: int = 1
    """Rank of each task's factors. The paper uses 1."""
    init: Any = dataclasses.field(default=None, metadata={"names": INITS})
    """The shared prompt: `"sampled"` frequent words, a `"text"`, class `"labels"`, `"random"` numbers uniform in
    ±0.5, or another prompt: its saved folder, or `model.prompts[name]`. The default follows `init_text` or `labels`
    if one is given, otherwise it is `"sampled"`."""
    init_text: str | None = None
    """The text of `init="text"`, tokenized without special tokens, repeated or cut to the prompt."""
    labels: tuple[str, ...] | None = None
    """The labels of `init="labels"`: row i is the mean embedding of label i's tokens; those beyond the prompt are left
    out."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer, for `"text"` and `"labels"`."""
    factor_init: str = "identity"
    """`"identity"`: every task starts from the shared prompt; `"normal"`: factors N(0, 0.02), as in PEFT."""
    source_task: str | int = "average"
    """Initial factors if `init` is another prompt of this method: the `"average"` of its tasks' factors (the paper's
    target adaptation), those of one task by number, of `"each"` task for itself, or `"shared"`: `factor_init`."""
    teacher: Any = dataclasses.field(
        default=None, metadata={"names": (None,), "prompts": True}, repr=False, compare=False
    )
    """A trained prompt per task to distill from: a list of prompts or saved folders, or a tensor
    `(tasks, tokens, hidden)`. It is only used in training, and not saved."""
    distillation: float = 0.9
    """Weight of the distillation, with a teacher. Source: the paper's λ."""
    temperature: float = 1.0
    """Temperature by which the logits of teacher and student are divided before they are compared."""
    factor_learning_rate_ratio: float = 4 / 3
    """Learning rate of the factors divided by that of the shared prompt. Source: the paper's 0.4 and 0.3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_integer("num_tasks", self.num_tasks)
        check_positive_integer("rank", self.rank)
        self.settle(init=check_init(self.init, INITS, self.init_text, self.labels, self.tokenizer))
        check_choice("factor_init", self.factor_init, FACTOR_INITS)
        check_source_task(self.source_task, self.init)
        check_teacher("teacher", self.teacher, self.num_tasks)
        check_not_negative("distillation", self.distillation)
        check_positive("temperature", self.temperature)
        check_positive("factor_learning_rate_ratio", self.factor_learning_rate_ratio)

    @property
    def replaces_loss(self) -> bool:
        """Whether there is a teacher to distill from."""
        return self.teacher is not None and self.distillation > 0


class Parameters(nn.Module):
    """The shared prompt and the factors of every task."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        options: dict[str, Any] = {"dtype": dtype, "device": backbone.device}
        count, hidden = config.num_virtual_tokens, backbone.hidden_size
        self.shared = nn.Parameter(torch.empty(count, hidden, **options))
        self.cols = nn.Parameter(torch.empty(config.num_tasks, count, config.rank, **options))
        self.rows = nn.Parameter(torch.empty(config.num_tasks, config.rank, hidden, **options))
        self.teacher: Tensor | None
        # Moves with the module, but is neither trained nor saved.
        teacher = teacher_embeddings("teacher", config.teacher, config.num_virtual_tokens, backbone)
        self.register_buffer("teacher", teacher, persistent=False)
        self._config = config

    @torch.no_grad()
    def initialize(self, config: Config, backbone: Backbone) -> None:
        """Set the initial values of the shared prompt and the factors."""
        self.shared.copy_(initial_embeddings(config, backbone))
        self._start_factors(config.factor_init)

    @torch.no_grad()
    def start_from(self, tokens: VirtualTokens) -> None:
        """Start from the plain tokens of another prompt; if it has tasks, from those of one task."""
        embeddings = embeddings_of(tokens, "multitask_prompt_tuning")
        self.shared.copy_(embeddings_of_source(embeddings, tokens.num_tasks, self._config.source_task))
        self._start_factors(self._config.factor_init)

    @torch.no_grad()
    def start_from_parameters(self, parameters: "Parameters", config: Config) -> None:
        """Start from another prompt of this method: its shared prompt, and the factors chosen by `source_task`."""
        source = config.source_task
        check_factors_fit(source, parameters.cols.shape, config.num_tasks, config.rank)
        if source == "shared":
            self._start_factors(config.factor_init)
        else:
            self.cols.copy_(of_source(parameters.cols, source))
            self.rows.copy_(of_source(parameters.rows, source))
        self.shared.copy_(parameters.shared)

    def _start_factors(self, factor_init: str) -> None:
        """Fill the factors; `"identity"` makes their product one everywhere, and lets further ranks diverge."""
        self.cols.normal_(std=DEVIATION)
        self.rows.normal_(std=DEVIATION)
        if factor_init == "identity":
            # Beyond the first rank, one factor is zero and the other is not: equal ones would stay equal forever.
            self.cols.normal_()
            self.rows.zero_()
            self.cols[..., 0] = 1.0
            self.rows[:, 0] = 1.0


@hookimpl
def build_virtual_tokens(parameters: Parameters) -> VirtualTokens:
    """Multiply the shared prompt by each task's factors."""
    return InputTokens(parameters.shared * (parameters.cols @ parameters.rows))


@hookimpl
def training_loss(config: Config, parameters: Parameters, step: TrainingStep) -> Float[Tensor, ""]:
    """Add the distillation from the teacher to the model's own loss (section 3.2, equation 6)."""
    if parameters.teacher is None:
        raise UnsupportedError(
            "this prompt was trained with a teacher, which is not saved; attach a new one with init=<this prompt>, "
            "source_task='each', and teacher=… to continue with one, or without one to continue without"
        )
    teacher = step.run(InputTokens(parameters.teacher))
    distance = logit_divergence(step, teacher, config.temperature) + hidden_distance(step, teacher)
    return step.loss + config.distillation * share_of_step(step) * distance


@hookimpl
def parameter_groups(config: Config, parameters: Parameters, learning_rate: float) -> list[dict[str, Any]]:
    """Set a separate learning rate for the factors."""
    factors = [parameters.cols, parameters.rows]
    return [
        {"params": [parameters.shared], "lr": learning_rate},
        {"params": factors, "lr": learning_rate * config.factor_learning_rate_ratio},
    ]


@hookimpl
def write_peft(config: Config, parameters: Parameters, backbone: Backbone) -> PeftFiles:
    """Write the shared prompt and the factors as they are."""
    fields = {
        "peft_type": PEFT_TYPES[0],
        "num_virtual_tokens": config.num_virtual_tokens,
        "token_dim": backbone.hidden_size,
        "num_layers": len(next(iter(backbone.layers.values()), ())) or None,
        "num_attention_heads": None,
        "num_transformer_submodules": 1,
        # Any other initialization would make PEFT read the file that it names in order to load this one.
        "prompt_tuning_init": "RANDOM",
        "num_tasks": config.num_tasks,
        "num_ranks": config.rank,
    }
    return PeftFiles(fields, {name: getattr(parameters, own) for own, name in PEFT_NAMES.items()})


@hookimpl
def read_peft(fields: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone) -> PeftPrompt:
    """Read the shared prompt and the factors."""
    for name in PEFT_NAMES.values():
        if name not in tensors:
            raise CheckpointError(f"the adapter has no tensor {name!r}; it is not a {PEFT_TYPES[0]}")
    state = {own: tensors[name] for own, name in PEFT_NAMES.items()}
    count = fields.get("num_virtual_tokens")
    tasks, total, rank = check_factors(state, count, backbone.hidden_size)
    if total != count:
        warnings.warn(
            "the adapter has tokens for the decoder too (num_transformer_submodules=2), which PEFT uses in forward and "
            "not in generate; they are left out, so the results are those of PEFT's generate",
            stacklevel=2,
        )
        state = {**state, "shared": state["shared"][:count], "cols": state["cols"][:, :count]}
    return PeftPrompt({"num_virtual_tokens": count, "num_tasks": tasks, "rank": rank, "init": GIVEN}, state)
