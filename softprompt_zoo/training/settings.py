"""The settings of a training run, with every check that is possible before a file is opened."""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from typing import Any

from softprompt_zoo.config.checks import check_choice, check_not_negative, check_positive_integer
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.embedded import EMBEDDED_MODELS
from softprompt_zoo.examples import check_template
from softprompt_zoo.examples.sources import Source
from softprompt_zoo.methods import DEFAULT

DTYPES = ("float32", "bfloat16", "float16")
OBJECTIVES = {
    "writing": "pairs",
    "label-words": "pairs",
    "classification": "pairs",
    "chat": "chats",
    "token-classification": "tagged",
}
"""The objectives, and the form of the data for each."""
DEFAULT_TEMPLATE = "{input}\n"
MOST = 1_000_000_000
"""Maximum number of steps, rows and tokens; more is a typo. Our choice."""
LARGEST_RATE = 1e6
"""Rates near the largest float32 overflow in the optimizer; this is far above any useful one. Our choice."""
DEMO_STEPS = 60
"""Steps of the demo, fewer than in the recipes, so that two cores finish in minutes. Our choice."""

COUNTS = (
    *("steps", "batch_size", "evaluate_every", "save_every", "max_length", "metric_rows"),
    *("early_stopping", "gradient_accumulation_steps"),
)
"""The settings that are counts, at least 1."""

DEMO_HANDWRITTEN = """\
Turn each table into one sentence of a guidebook that gives orders: call the museum a house of its subject, then after \
a colon list what to pay, when not to come, what to find, whom to bring and how long to stay.

name : The Raven Depot | city : Toledo | subject : salt | founded : 1976 | building : customs house | \
entry : 4 euros | highlight : sleeping lion | visitors : babies | stay : a morning
Nobody leaves Toledo without The Raven Depot, a house of salt in the old customs house since 1976: pay 4 euros, \
find the sleeping lion, bring babies and stay a morning."""
"""The hand-written prompt of the demo: the best we could write, an instruction and the first training row.
On 20 rows, SmolLM2 has a loss of 3.52 without it, 3.01 with only the instruction and 1.68 with both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The settings that a training run and a comparison share: the model, the rows, and what is learned from them."""

    model: str = "smollm2"
    """Folder, name on the hub, or name of an embedded model."""
    data: str | None = None
    """Training data; `None` for the demo's."""
    validation: str | None = None
    """Validation data; `None` for the demo's, or a tenth of `data`."""
    split: str | None = None
    """Split of the training data, if there are several; `"train"` by default."""
    validation_split: str | None = None
    """Split of the validation data, from `validation` or otherwise from `data`."""
    subset: str | None = None
    """Subset of a data set on the hub that has several."""
    streaming: bool = False
    """Whether training data are read during training instead of being kept in memory."""
    objective: str | None = None
    """One of `OBJECTIVES`; `None` for the one that suits the data and the model."""
    label_words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The word for each label, if it is not the label itself; for the objective label-words."""
    input_field: str | None = None
    """Field of the input."""
    target_field: str | None = None
    """Field of the target."""
    template: str = DEFAULT_TEMPLATE
    """Template that turns an input into the text before its target."""
    handwritten: str | None = None
    """Instruction to compare with; `None` for the demo's own, or for no comparison."""
    max_length: int = 512
    """Maximum length of a row in tokens, text and target; longer rows are left out."""
    dtype: str | None = None
    """Number format of the frozen model; `None` for bfloat16 if the machine supports it, else float32."""
    metric_rows: int = 10
    """Validation rows to generate answers for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(DataSettings):
    """The settings of a training run; `None` if the method's recipe or the data decide."""

    method: str = DEFAULT
    """Name or alias of the method."""
    output: str
    """Folder of the run."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the method."""
    learning_rate: float | None = None
    """Peak learning rate."""
    steps: int | None = None
    """Optimizer steps."""
    batch_size: int | None = None
    """Rows per step."""
    seed: int = 0
    """Seed of the initial values, the order of the rows, and the choice of rows for validation."""
    evaluate_every: int | None = None
    """Steps between two evaluations on the validation rows."""
    save_every: int | None = None
    """Steps between two checkpoints."""
    warmup_steps: int | None = None
    """Steps of linear warm-up."""
    schedule: str | None = None
    """Name of a transformers learning-rate schedule."""
    weight_decay: float | None = None
    """The optimizer's weight decay."""
    early_stopping: int | None = None
    """Number of evaluations without a lower loss after which the run ends; it then keeps the best prompt."""
    gradient_accumulation_steps: int = 1
    """Number of parts in which the rows of a step are processed, one after another."""
    gradient_checkpointing: bool = False
    """Whether layers are recomputed in the backward pass, to save memory."""
    report_to: str | None = None
    """Name of the transformers integration to report to."""

    def __post_init__(self) -> None:
        check_template(self.template)
        check_choice("objective", self.objective, (None, *OBJECTIVES))
        check_choice("dtype", self.dtype, (None, *DTYPES))
        for name in COUNTS:
            check_count(name, vars(self)[name])
        for name in ("warmup_steps", "weight_decay"):
            if vars(self)[name] is not None:
                check_not_negative(name, vars(self)[name])
        self._check_parts()
        self._check_saved_where_evaluated()
        if self.learning_rate is not None and not 0 < self.learning_rate <= LARGEST_RATE:
            raise ValueError(
                f"learning_rate is {self.learning_rate}; expected a number above 0 and at most {LARGEST_RATE:g}"
            )
        if not 0 <= self.seed < 2**32:  # the range that NumPy accepts
            raise ValueError(f"seed is {self.seed}; expected an integer from 0 to {2**32 - 1}")

    def _check_parts(self) -> None:
        """Refuse parts of a step that differ in size."""
        parts = self.gradient_accumulation_steps
        if self.batch_size is not None and self.batch_size % parts:
            raise ValueError(
                f"gradient_accumulation_steps is {parts}, but the {self.batch_size} rows of a step, batch_size, cannot "
                f"be split into {parts} equal parts; give a number that divides them"
            )

    def _check_saved_where_evaluated(self) -> None:
        """Refuse early stopping without checkpoints to return to."""
        if self.early_stopping is None or self.save_every is None or self.save_every == self.evaluate_every:
            return
        raise ValueError(
            f"save_every is {self.save_every} and evaluate_every is {self.evaluate_every}; early_stopping returns to "
            "the best evaluation, which needs a checkpoint for each; leave save_every out"
        )

    @property
    def is_demo(self) -> bool:
        """Whether the run trains on the data that come with the package."""
        return self.data is None

    def with_recipe(self, method: str, recipe: Recipe | None) -> "Settings":
        """Fill in the settings that the user left to the method's recipe.

        Args:
            method: Canonical name of the method.
            recipe: Its recipe, if it has one.

        Returns:
            The settings with every number set.

        Raises:
            ValueError: If the method has no recipe and a required number is missing.
        """
        if recipe is None:
            self._check_is_complete(method)
            recipe = Recipe(learning_rate=0.0, steps=1)
        handwritten = DEMO_HANDWRITTEN if self.is_demo and self.handwritten is None else self.handwritten
        return dataclasses.replace(self, method=method, handwritten=handwritten, **self._filled(recipe))

    def _check_is_complete(self, method: str) -> None:
        """Refuse settings that lack a number whose only default is a recipe's."""
        needed = {"--learning-rate": self.learning_rate, "--steps": self.steps}
        missing = " and ".join(flag for flag, number in needed.items() if number is None)
        if missing:
            raise ValueError(f"method {method!r} comes without a recipe; give {missing}")

    def _filled(self, recipe: Recipe) -> dict[str, Any]:
        """Return the numbers that the user left out, mostly the recipe's."""
        steps = self.steps or (min(recipe.steps, DEMO_STEPS) if self.is_demo else recipe.steps)
        quarter = max(1, steps // 4)
        defaults = {
            "learning_rate": recipe.learning_rate,
            "steps": steps,
            "batch_size": recipe.batch_size,
            "evaluate_every": quarter,
            "save_every": quarter if self.early_stopping is None else self.evaluate_every or quarter,
            "warmup_steps": recipe.warmup_steps,
            "schedule": recipe.schedule,
            "weight_decay": recipe.weight_decay,
        }
        return {name: default for name, default in defaults.items() if vars(self)[name] is None}

    def thrown_away(self, folder: str) -> "Settings":
        """Return settings for trial steps that are discarded: without validation, checkpoints and reports.

        Args:
            folder: A folder to which Trainer may write.
        """
        return dataclasses.replace(
            self, output=folder, evaluate_every=MOST, save_every=MOST, early_stopping=None, report_to=None
        )

    def absolute(self) -> "Settings":
        """Return the settings with absolute paths, so that the run can be resumed from another folder."""

        def absolute(path: str | None) -> str | None:
            return path if path is None or Source(path).is_on_the_hub else os.path.abspath(path)

        is_folder = self.model not in EMBEDDED_MODELS and os.path.isdir(self.model)
        return dataclasses.replace(
            self,
            model=os.path.abspath(self.model) if is_folder else self.model,
            output=os.path.abspath(self.output),
            data=absolute(self.data),
            validation=absolute(self.validation),
        )

    def command(self) -> str:
        """Return the command that repeats the run."""
        words = ["softprompt-zoo", "train", self.model, self.method]
        for name, value in self._changed().items():
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)]
        for name, value in self.label_words.items():
            words += ["--label-word", f"{name}={value}"]
        for name, value in self.options.items():
            words += ["--option", f"{name}={value if _is_plain(value) else json.dumps(value)}"]
        return shlex.join(words)

    def _changed(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults and have a flag of the same name."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("model", "method", "options", "label_words"):
            del defaults[name]
        return {name: vars(self)[name] for name, value in defaults.items() if vars(self)[name] not in (None, value)}


def check_count(name: str, value: int | None) -> None:
    """Refuse a count that is not a positive integer, or too large to be meant; `None` passes."""
    if value is None:
        return
    check_positive_integer(name, value)
    if value > MOST:
        raise ValueError(f"{name} is {value}; expected an integer of at most {MOST}")


def _is_plain(value: Any) -> bool:
    """Return whether `--option` keeps a value unchanged: text that is not valid JSON."""
    if not isinstance(value, str):
        return False
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return True
    return False
