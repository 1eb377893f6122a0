"""A soft-prompt method of the registry."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.method import get_method
from softprompt_zoo.model.attachment import detach
from softprompt_zoo.training.base import with_tokenizer
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted, Options
from softprompt_zoo.training.comparison.candidates.few_shot import BETWEEN, drawn
from softprompt_zoo.training.comparison.candidates.sizing import sized
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.trial import Trial
from softprompt_zoo.training.objectives.objective import Objective
from softprompt_zoo.training.objectives.tasks import OfTask, has_tasks

LENGTH = "num_virtual_tokens"
"""The option for the length of a prompt."""
CONTEXT_TEMPLATE = f"{{input}}{{target}}{BETWEEN}"
"""Template for methods that learn from examples; text and answer already include the template of the data."""


class SoftPrompt:
    """A prompt of a method; a `Candidate`."""

    is_trained = True
    varies = True

    def __init__(self, name: str) -> None:
        self.method = get_method(name)
        self.name = self.method.name
        self.recipe: Recipe | None = self.method.recipe
        self._fields = {field.name: field for field in dataclasses.fields(self.method.config_class)}

    def variants(self, choices: Choices, bench: Bench) -> Sequence[Options]:
        """Return each requested length with each requested start; those without an option of the method are ignored."""
        starts = self._values("init", choices.starts)
        if choices.parameters is not None:
            return [sized(self, start, LENGTH, choices.parameters, bench) for start in starts]
        lengths = self._values(LENGTH, choices.lengths) if self._has_length else [{}]
        return [{**length, **start} for length, start in itertools.product(lengths, starts)]

    @contextlib.contextmanager
    def put_on(self, bench: Bench, trial: Trial) -> Iterator[Fitted]:
        """Attach a new prompt, and detach it again."""
        self.attach(bench, trial)
        try:
            yield self.fitted(bench)
        finally:
            detach(bench.model)

    def attach(self, bench: Bench, trial: Trial, name: str | None = None) -> None:
        """Attach a new prompt to the model of the bench.

        Args:
            bench: The model and the rows.
            trial: The trial that the prompt is for.
            name: Name of the prompt; by default the name of a model's only prompt.

        Raises:
            UnsupportedError: If it does not fit the model.
        """
        options = {**self.objective(bench).options, **trial.options, **self._of_the_data(bench, trial)}
        method = self.method.configure(**options)
        method(bench.model, name=name, **with_tokenizer(method, bench.base.tokenizer))

    def objective(self, bench: Bench) -> Objective[Any, Any]:
        """Return the objective of its prompts, with tasks if they have a part for each task."""
        return bench.objective_of_tasks if has_tasks(self.method) else bench.objective

    def fitted(self, bench: Bench) -> Fitted:
        """Return the model of the bench with the prompt that `attach` has put on it."""
        from softprompt_zoo.training.trainer import PromptTrainer

        model, objective = bench.model, self.objective(bench)
        one_task = None if objective is bench.objective else OfTask(model, 0)
        prompts = model.prompts
        tokens = sum(prompts[name].num_virtual_tokens for name in prompts.active)

        def save(folder: Path) -> None:
            model.save_pretrained(folder)

        return Fitted(
            model=model, objective=objective, one_task=one_task, prompt_tokens=tokens, trainer=PromptTrainer, save=save
        )

    @property
    def _has_length(self) -> bool:
        """Whether the number of virtual tokens can be chosen rather than being derived."""
        field = self._fields[LENGTH]
        return field.default != 0

    def _values(self, option: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        return [{option: value} for value in values] if values and option in self._fields else [{}]

    def _of_the_data(self, bench: Bench, trial: Trial) -> dict[str, Any]:
        """Return the options that come from the data: examples, for a method that learns from a few."""
        if "examples" not in self._fields:
            return {}
        examples = tuple(drawn(bench, trial.shared["shots"], trial.seed))
        return {"examples": examples, "template": CONTEXT_TEMPLATE}
