"""Rows of several tasks: any other objective, for a prompt that has a part for each task."""

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
"""The option of methods whose prompts have tasks."""


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """A tokenized row, of whatever kind, and its task."""

    row: Any
    task: int

    @property
    def ids(self) -> list[int]:
        """Every token of the row."""
        ids: list[int] = self.row.ids
        return ids

    def __len__(self) -> int:
        return len(self.row)


class OfTask:
    """A model all of whose rows are of one task, and that is the same else."""

    def __init__(self, model: Any, task: int) -> None:
        self._model, self._task = model, task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        """Run the model."""
        return self._model(**inputs, task_ids=[self._task])

    def generate(self, **inputs: Any) -> Any:
        """Write with the model."""
        return self._model.generate(**inputs, task_ids=[self._task])


class Tasks:
    """Rows that say which task they belong to; an `Objective`."""

    def __init__(self, inner: Objective[Any, Any], tasks: Sequence[str]) -> None:
        self.inner, self.tasks = inner, list(tasks)
        self.name, self.base, self.loss_of, self.metrics = inner.name, inner.base, inner.loss_of, inner.metrics
        self.model_class, self.model_arguments = inner.model_class, inner.model_arguments
        self.options: Mapping[str, Any] = {**inner.options, OPTION: len(self.tasks)}

    @property
    def facts(self) -> dict[str, Any]:
        """The names of the tasks, in the order of the prompt's, besides what the other objective learned."""
        return {**self.inner.facts, "tasks": self.tasks}

    def load(self, dtype: str) -> "PreTrainedModel":
        """Load the model that it needs, in eval mode."""
        return self.inner.load(dtype)

    def rows(self, examples: Sequence[Any]) -> list[TaskRow]:
        """Tokenize examples."""
        tasks = [task_index(example, self.tasks) for example in examples]
        return [TaskRow(row, task) for row, task in zip(self.inner.rows(examples), tasks, strict=True)]

    def longest(self, rows: Sequence[TaskRow]) -> list[TaskRow]:
        """Return the rows that need most room."""
        known = {id(row.row): row for row in rows}
        return [known[id(row)] for row in self.inner.longest([row.row for row in rows])]

    def collate(self, rows: Sequence[TaskRow]) -> dict[str, Tensor]:
        """Make a batch, with `task_ids`, `(rows)`."""
        return {
            **self.inner.collate([row.row for row in rows]),
            "task_ids": torch.tensor([row.task for row in rows]),
        }

    def of_task(self, model: Any, task: int) -> Any:
        """Return a model all of whose rows are of one task."""
        return OfTask(model, task)

    def measure(
        self, model: "PreTrainedModel", examples: Sequence[Any], rows: Sequence[TaskRow], count: int
    ) -> Measured:
        """Measure the loss on all rows, and metrics as means over the tasks."""
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
        """Say on what the numbers of a table are measured."""
        answers = max(count, min(rows, len(self.tasks)))
        return f"{self.inner.measured_on(rows, answers)}; all but the loss are means over {len(self.tasks)} tasks"

    def with_instruction(self, instruction: str) -> "Tasks":
        """Return one that puts a hand-written prompt in front of every text."""
        return type(self)(self.inner.with_instruction(instruction), self.tasks)

    def with_examples(self, pieces: Sequence[str]) -> "Tasks":
        """Return one that puts examples in front of every text."""
        return type(self)(self.inner.with_examples(pieces), self.tasks)

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""
        return self.inner.instruction_tokens(instruction)

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Answer texts, with an `OfTask`."""
        return self.inner.answer(model, texts, most)

    def shown(self, example: Any) -> tuple[str, str]:
        """Return an example as a table shows it."""
        return self.inner.shown(example)


class UntoldTasks(Tasks):
    """The same for a model that is not told the tasks: it is one for all of them, and measured task by task."""

    def __init__(self, inner: Objective[Any, Any], tasks: Sequence[str]) -> None:
        super().__init__(inner, tasks)
        self.options = inner.options

    def collate(self, rows: Sequence[TaskRow]) -> dict[str, Tensor]:
        """Make a batch, without the tasks."""
        return self.inner.collate([row.row for row in rows])

    def of_task(self, model: Any, task: int) -> Any:
        """Return the model."""
        return model


def has_tasks(method: Method) -> bool:
    """Return whether a method's prompts have a part for each task."""
    return any(field.name == OPTION for field in dataclasses.fields(method.config_class))


def tasks_of(data: Data) -> list[str]:
    """Return the tasks that rows name, in the order of the prompt's; none if no training row names one.

    Args:
        data: The rows.

    Raises:
        DataError: If some rows name one and others do not, or a validation row one that no training row has.
    """
    tasks = sorted({example.task for example in data.train if example.task is not None})
    for example in itertools.chain(data.train, data.validation) if tasks else ():
        task_index(example, tasks)
    return tasks


def with_tasks(objective: Objective[Any, Any], data: Data, method: Method) -> Objective[Any, Any]:
    """Take the tasks of rows along, where they have some and the method's prompts do.

    Args:
        objective: What is learned in every task.
        data: The rows.
        method: The method, with the user's options.

    Returns:
        An objective for the tasks, or the same one.

    Raises:
        DataError: If a row has no task, a validation row one that no training row has, or the user's number of tasks
            is another.
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
    """Return which task a row belongs to.

    Args:
        example: The row.
        tasks: Names of the tasks, in the order of the prompt's.

    Raises:
        DataError: If it has none, or one that is not among them.
    """
    if example.task is None:
        raise DataError(
            f"{example.place}: the row names no task; the tasks are {listed(tasks)}; give every row one of them in the "
            "field 'task'"
        )
    if example.task not in tasks:
        near = difflib.get_close_matches(example.task, tasks, n=1)
        raise DataError(
            f"{example.place}: the task {example.task!r} is not one of those that are learned: {listed(tasks)}; "
            f"{f'did you mean {near[0]!r}?' if near else 'correct it, drop the row, or add training rows of it'}"
        )
    return tasks.index(example.task)
