"""Several tasks: any other objective, for a prompt that has a part for each task."""

import dataclasses
import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.row import listed
from softprompt_zoo.method import Method
from softprompt_zoo.training.data import Data
from softprompt_zoo.training.evaluation import target_loss
from softprompt_zoo.training.objectives.objective import Measured, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTION = "num_tasks"
"""The option of methods whose prompts have a part for each task."""


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """A tokenized row of any kind, and its task."""

    row: Any
    task: int

    @property
    def ids(self) -> list[int]:
        """All tokens of the row."""
        ids: list[int] = self.row.ids
        return ids

    def __len__(self) -> int:
        return len(self.row)


class OfTask:
    """A model that treats all rows as one task; otherwise unchanged."""

    def __init__(self, model: Any, task: int) -> None:
        self._model, self._task = model, task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        """Run the model."""
        return self._model(**inputs, task_ids=[self._task])

    def generate(self, **inputs: Any) -> Any:
        """Generate with the model."""
        return self._model.generate(**inputs, task_ids=[self._task])


class Tasks:
    """Rows that name the task they belong to; an `Objective`."""

    def __init__(self, inner: Objective[Any, Any], tasks: Sequence[str]) -> None:
        self.inner, self.tasks = inner, list(tasks)
        self.name, self.base, self.loss_of, self.metrics = inner.name, inner.base, inner.loss_of, inner.metrics
        self.model_class, self.model_arguments = inner.model_class, inner.model_arguments
        self.options: Mapping[str, Any] = {**inner.options, OPTION: len(self.tasks)}

    @property
    def facts(self) -> dict[str, Any]:
        """The names of the tasks, in the order of the prompt, and what the inner objective learned."""
        return {**self.inner.facts, "tasks": self.tasks}

    def load(self, dtype: str) -> "PreTrainedModel":
        """Load the required model, in eval mode."""
        return self.inner.load(dtype)

    def rows(self, examples: Sequence[Any]) -> list[TaskRow]:
        """Tokenize examples."""
        tasks = [task_index(example, self.tasks) for example in examples]
        return [TaskRow(row, task) for row, task in zip(self.inner.rows(examples), tasks, strict=True)]

    def longest(self, rows: Sequence[TaskRow]) -> list[TaskRow]:
        """Return the largest rows."""
        known = {id(row.row): row for row in rows}
        return [known[id(row)] for row in self.inner.longest([row.row for row in rows])]

    def collate(self, rows: Sequence[TaskRow]) -> dict[str, Tensor]:
        """Make a batch, with `task_ids` `(rows,)`."""
        return {
            **self.inner.collate([row.row for row in rows]),
            "task_ids": torch.tensor([row.task for row in rows]),
        }

    def of_task(self, model: Any, task: int) -> Any:
        """Return the model for rows of a single task."""
        return OfTask(model, task)

    def measure(
        self, model: "PreTrainedModel", examples: Sequence[Any], rows: Sequence[TaskRow], count: int
    ) -> Measured:
        """Measure the loss on all rows, and the metrics as means over tasks."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.task, []).append(place)
        answers: dict[int, str] = {}
        metrics = []
        for task, own in sorted(places.items()):
            first = max(1, sum(place < count for place in own))
            measured = self.inner.measure(
                self.of_task(model, task), [examples[n] for n in own], [rows[n].row for n in own], first
            )
            answers.update(zip(own, measured.answers, strict=False))
            metrics.append(measured.metrics)
        means = {name: sum(part[name] for part in metrics) / len(metrics) for name in metrics[0]}
        told = itertools.takewhile(answers.__contains__, range(len(rows)))
        return Measured(target_loss(model, rows, self.collate), means, [answers[place] for place in told])

    def measured_on(self, rows: int, count: int) -> str:
        """Describe how the numbers of a table were measured."""
        answers = max(count, min(rows, len(self.tasks)))
        return f"{self.inner.measured_on(rows, answers)}; all but the loss are means over {len(self.tasks)} tasks"

    def with_instruction(self, instruction: str) -> "Tasks":
        """Return a copy that puts a hand-written prompt before every text."""
        return type(self)(self.inner.with_instruction(instruction), self.tasks)

    def with_examples(self, pieces: Sequence[str]) -> "Tasks":
        """Return a copy that puts examples before every text."""
        return type(self)(self.inner.with_examples(pieces), self.tasks)

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""
        return self.inner.instruction_tokens(instruction)

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Answer texts with an `OfTask` model."""
        return self.inner.answer(model, texts, most)

    def shown(self, example: Any) -> tuple[str, str]:
        """Return an example as a table shows it."""
        return self.inner.shown(example)


class UntoldTasks(Tasks):
    """The same for a model that does not get the tasks: it is shared by all, but measured task by task."""

    def __init__(self, inner: Objective[Any, Any], tasks: Sequence[str]) -> None:
        super().__init__(inner, tasks)
        self.options = inner.options

    def collate(self, rows: Sequence[TaskRow]) -> dict[str, Tensor]:
        """Make a batch without the tasks."""
        return self.inner.collate([row.row for row in rows])

    def of_task(self, model: Any, task: int) -> Any:
        """Return the model unchanged."""
        return model


def has_tasks(method: Method) -> bool:
    """Return whether a method's prompts have a part for each task."""
    return any(field.name == OPTION for field in dataclasses.fields(method.config_class))


def tasks_of(data: Data) -> list[str]:
    """Return the tasks that rows name, in the order of the prompt; none if no training row names one.

    Args:
        data: The data.

    Raises:
        DataError: If only some rows name a task, or a validation row names one that no training row has.
    """
    tasks = sorted({example.task for example in data.train if example.task is not None})
    for example in itertools.chain(data.train, data.validation) if tasks else ():
        task_index(example, tasks)
    return tasks


def with_tasks(objective: Objective[Any, Any], data: Data, method: Method) -> Objective[Any, Any]:
    """Return an objective for the tasks of the rows, if both the rows and the method's prompts have tasks.

    Args:
        objective: The objective of every task.
        data: The data.
        method: The method, with the user's options.

    Returns:
        An objective for the tasks, or the same one.

    Raises:
        DataError: If a row has no task, a validation row has one that no training row has, or the user's number of
            tasks differs.
    """
    tasks = tasks_of(data) if has_tasks(method) else []
    if not tasks:
        return objective
    given = method.options.get(OPTION, len(tasks))
    if given != len(tasks):
        raise DataError(
            f"the option {OPTION} is {given}, but the training rows have {len(tasks)} tasks: {listed(tasks)}; leave "
            "the option out, or correct the rows"
        )
    return Tasks(objective, tasks)


def task_index(example: Any, tasks: Sequence[str]) -> int:
    """Return the index of the task that a row belongs to.

    Args:
        example: The row.
        tasks: Names of the tasks, in the order of the prompt.

    Raises:
        DataError: If the row has no task, or one that is not in `tasks`.
    """
    if example.task is None:
        raise DataError(
            f"{example.place}: the row names no task; the tasks are {listed(tasks)}; give every row one of them in the "
            "field 'task'"
        )
    if example.task not in tasks:
        near = difflib.get_close_matches(example.task, tasks, n=1)
        raise DataError(
            f"{example.place}: the task {example.task!r} is not one of the tasks to learn: {listed(tasks)}; "
            f"{f'did you mean {near[0]!r}?' if near else 'correct it, drop the row, or add training rows with it'}"
        )
    return tasks.index(example.task)
