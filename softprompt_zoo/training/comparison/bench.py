"""The bench that all trials share: the model, loaded once, the rows, and how candidates are measured."""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from statistics import median
from typing import TYPE_CHECKING, Any

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.registry.discovery import own_version
from softprompt_zoo.training.base import Base, check_tokens, fast_dtype
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.row_losses import row_losses
from softprompt_zoo.training.comparison.training_rows import training_rows
from softprompt_zoo.training.comparison.unrelated import Unrelated
from softprompt_zoo.training.data import read_data
from softprompt_zoo.training.evaluation import generate
from softprompt_zoo.training.objectives.kinds import choose
from softprompt_zoo.training.objectives.objective import Measured, Objective, fitting
from softprompt_zoo.training.objectives.rows import IGNORED
from softprompt_zoo.training.objectives.tasks import Tasks, UntoldTasks, tasks_of
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.fitted import Fitted

FIRST_TOKENS = 5
"""How often the first token is generated to time it; the median counts. Our choice."""


class Bench:
    """The model and the rows of a comparison; created before the weights are loaded, so that bad input fails early."""

    def __init__(self, settings: Settings, choices: Choices, tell: Callable[[str], None]) -> None:
        self.settings, self.choices, self._tell = settings, choices, tell
        _check_stream(settings, choices)
        data = read_data(settings)
        self.base = Base(settings.model, progress=tell)
        objective, data = choose(settings, data, self.base)
        self.tasks = tasks_of(data)
        """The tasks that the rows name; empty if they name none."""
        self.objective: Objective[Any, Any] = UntoldTasks(objective, self.tasks) if self.tasks else objective
        """The objective for prompts without a part for each task."""
        self.objective_of_tasks: Objective[Any, Any] = Tasks(objective, self.tasks) if self.tasks else objective
        """The objective for prompts with a part for each task."""
        self.training = training_rows(self.objective, data.train, choices.rows, settings.max_length)
        """The rows that trials are trained on."""
        self.examples = fitting(
            self.objective, data.validation[: choices.validation_rows], settings.max_length, "validation"
        )
        self.rows = self.objective.rows(self.examples)
        self.answered = min(settings.metric_rows, len(self.rows))
        """Number of validation rows for which answers are generated."""
        self.dtype = settings.dtype or fast_dtype()
        self.sources = data.sources
        self.model: Any = None
        """The model, set by `load`; every trial leaves it bitwise unchanged."""

    @property
    def shared(self) -> Mapping[str, Any]:
        """Everything that all trials depend on, as JSON values."""
        packages = ("torch", "transformers")
        streamed = {"streaming": True} if self.settings.streaming else {}  # changes the order of the rows
        return {
            **streamed,
            "model": self.settings.model,
            "data": {name: source["sha256"] for name, source in self.sources.items()},
            "training_rows": self.training.count,
            "validation_rows": len(self.rows),
            "answered_rows": self.answered,
            "objective": self.objective.name,
            "objective_facts": self.objective.facts,
            "template": self.settings.template,
            "max_length": self.settings.max_length,
            "dtype": self.dtype,
            "shots": self.choices.shots,
            "versions": {"softprompt-zoo": own_version(), **{name: metadata.version(name) for name in packages}},
        }

    def load(self) -> None:
        """Load the model and measure its loss on unrelated text, the reference for forgetting."""
        self._tell(f"loading {self.settings.model} in {self.dtype}")
        self.model = self.objective.load(self.dtype)
        check_tokens([*self.training.rows, *self.rows], self.model)
        self.unrelated = Unrelated.of(self.model, self.base)

    def objective_for(self, fitted: "Fitted") -> Objective[Any, Any]:
        """Return a candidate's objective, including any text that it puts in front of the rows."""
        objective: Objective[Any, Any] = fitted.put_in_front(fitted.objective or self.objective)
        return objective

    def measure(self, fitted: "Fitted") -> tuple[Measured, list[float]]:
        """Measure a candidate on the validation rows.

        Returns:
            Loss, metrics and answers, and the loss of each row.
        """
        objective = self.objective_for(fitted)
        rows = objective.rows(self.examples)
        measured = objective.measure(fitted.model, self.examples, rows, self.answered)
        return measured, row_losses(fitted.model, rows, objective.collate)

    def first_token_seconds(self, fitted: "Fitted") -> float | None:
        """Time how long a candidate takes to generate the first token of an answer to the row of median length."""
        if not fitted.model.can_generate():
            return None
        rows = sorted(self.objective_for(fitted).rows(self.examples), key=len)
        texts = [self._parts(rows[len(rows) // 2])[0]]
        times = []
        for _ in range(FIRST_TOKENS + 1):  # the first run starts with cold caches
            began = time.perf_counter()
            generate(fitted.model_for_texts, self.base.tokenizer, texts, 1)
            times.append(time.perf_counter() - began)
        return median(times[1:])

    def pairs(self, places: Sequence[int]) -> list[tuple[str, str]]:
        """Return training examples as pairs of text and answer, each as the model reads it.

        Args:
            places: Indices of the training rows.

        Raises:
            UnsupportedError: If the model does not read answers as text.
        """
        decode = self.base.tokenizer.decode
        parts = [self._parts(self.training.rows[place]) for place in places]
        texts, answers = ([decode(ids, skip_special_tokens=True) for ids in side] for side in zip(*parts, strict=True))
        return list(zip(texts, answers, strict=True))

    def _parts(self, row: Any) -> tuple[list[int], list[int]]:
        """Return the token ids of a row's text and of its answer."""
        batch = self.objective.collate([row])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        if not isinstance(labels, list):
            raise UnsupportedError("this model predicts a class and reads no answers, so it cannot be shown examples")
        answer = [label for label in labels if label != IGNORED]
        text = ids if self.base.is_encoder_decoder else ids[: len(ids) - len(answer)]
        return text, answer


def _check_stream(settings: Settings, choices: Choices) -> None:
    """Reject a limit on rows that are streamed."""
    if settings.streaming and choices.rows is not None:
        raise ValueError(
            f"--rows is {choices.rows}, but --streaming reads all rows while training; leave one of the two out"
        )
