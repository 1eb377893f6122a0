"""Classification with a task head: the loss of the class of each text, accuracy and macro-F1."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.examples import Example, apply_template
from softprompt_zoo.training.base import check_tokens
from softprompt_zoo.training.data import Data
from softprompt_zoo.training.evaluation import batches
from softprompt_zoo.training.metrics import accuracy, macro_f1
from softprompt_zoo.training.objectives import labels
from softprompt_zoo.training.objectives.objective import Measured, Metric
from softprompt_zoo.training.objectives.rows import pad
from softprompt_zoo.training.objectives.task_heads import check_padding, ordered_classes, with_new_head
from softprompt_zoo.training.settings import DEFAULT_TEMPLATE, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base

METRICS = (Metric("accuracy", "accuracy"), Metric("macro_f1", "macro-F1"))


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """A tokenized text and its class."""

    ids: list[int]
    label: int
    """Index of the class."""

    def __len__(self) -> int:
        return len(self.ids)


class Classification:
    """Texts with labels, for a model with a task head, which is trained as well; an `Objective`."""

    name = "classification"
    options: Mapping[str, Any] = MappingProxyType({"train_head": True})
    model_class = "AutoModelForSequenceClassification"
    metrics: tuple[Metric, ...] = METRICS
    loss_of = "row"

    def __init__(self, base: "Base", template: str, classes: Sequence[str]) -> None:
        check_padding(base)
        self.base, self.tokenizer = base, base.tokenizer
        self.template = "{input}" if template == DEFAULT_TEMPLATE else template  # no answer follows, so no line break
        self.classes = ordered_classes(base, self.model_class, classes)
        self.model_arguments: tuple[str, ...] = (f"num_labels={len(self.classes)}",)

    @staticmethod
    def learn(data: Data, settings: Settings) -> tuple[Data, dict[str, Any]]:
        """Find the classes, and hold out some rows of each."""
        data = labels.hold_out(data, settings.seed)
        return data, {"classes": labels.learnable(data)}

    @property
    def facts(self) -> dict[str, Any]:
        """The classes, in the order of the head's outputs."""
        return {"classes": self.classes}

    def load(self, dtype: str) -> "PreTrainedModel":
        """Load the model with a head for the classes, its own if it has one, in eval mode."""
        return with_new_head(self.base, self.model_class, self.classes, dtype)

    def rows(self, examples: Sequence[Example]) -> list[ClassRow]:
        """Tokenize examples."""
        labels.check_known(examples, self.classes)
        return [ClassRow(self._ids(example), self.classes.index(str(example.target))) for example in examples]

    def _ids(self, example: Example) -> list[int]:
        ids: list[int] = self.tokenizer(apply_template(self.template, example))["input_ids"]
        if not ids:
            raise UnsupportedError(
                f"{example.place or 'a text'}: the input {example.input!r} has no tokens in the template "
                f"{self.template!r}; every text needs at least one; change the input or the template"
            )
        return ids

    def longest(self, rows: Sequence[ClassRow]) -> list[ClassRow]:
        """Return the longest row."""
        return [max(rows, key=len)]

    def collate(self, rows: Sequence[ClassRow]) -> dict[str, Tensor]:
        """Make a batch, with a label `(rows,)` for each row."""
        batch = pad([row.ids for row in rows], self.tokenizer.pad_token_id)
        return {**batch, "labels": torch.tensor([row.label for row in rows])}

    def measure(
        self, model: "PreTrainedModel", examples: Sequence[Example], rows: Sequence[ClassRow], count: int
    ) -> Measured:
        """Measure the loss, accuracy and macro-F1 on all rows."""
        loss, predicted = self._predict(model, rows)
        right = [row.label for row in rows]
        metrics = {"accuracy": accuracy(predicted, right), "macro_f1": macro_f1(predicted, right)}
        return Measured(loss, metrics, [self.classes[index] for index in predicted])

    @torch.no_grad()
    def _predict(self, model: "PreTrainedModel", rows: Sequence[ClassRow]) -> tuple[float, list[int]]:
        """Return the mean loss of the rows and the most likely class of each."""
        model.eval()
        total, predicted = 0.0, [0] * len(rows)
        for chosen, batch in batches(model, rows, self.collate):
            output = model(**batch)
            total += float(output.loss) * len(chosen)
            for index, label in zip(chosen, output.logits.argmax(-1).tolist(), strict=True):
                predicted[index] = label
        return total / len(rows), predicted

    def measured_on(self, rows: int, count: int) -> str:
        """Describe how the numbers of a table were measured."""
        return f"loss per row, accuracy and macro-F1 of {len(self.classes)} classes on {rows} rows"

    def with_instruction(self, instruction: str) -> "Classification":
        """Return a copy that puts a hand-written prompt and a blank line before every text."""
        kept = instruction.replace("{", "{{").replace("}", "}}")
        return Classification(self.base, f"{kept}\n\n{self.template}", self.classes)

    def with_examples(self, pieces: Sequence[str]) -> "Classification":
        """Raise an error: its models read no answers."""
        raise UnsupportedError("this model predicts a class and reads no answers, so it cannot be given examples")

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""
        return len(self.tokenizer(instruction, add_special_tokens=False)["input_ids"])

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Return the predicted class of every text."""
        rows = [ClassRow(self._ids(Example(text, None)), 0) for text in texts]
        check_tokens(rows, model)
        return [self.classes[index] for index in self._predict(model, rows)[1]]

    def shown(self, example: Example) -> tuple[str, str]:
        """Return the input and its label."""
        return example.input, str(example.target)
