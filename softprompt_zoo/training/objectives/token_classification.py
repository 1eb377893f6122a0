"""Token classification: the loss of the tag of each word, and accuracy and macro-F1 over words."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.errors import DataError, UnsupportedError
from softprompt_zoo.examples import Example
from softprompt_zoo.examples.tagged import Tagged
from softprompt_zoo.training.base import check_tokens
from softprompt_zoo.training.data import Data
from softprompt_zoo.training.evaluation import batches
from softprompt_zoo.training.metrics import accuracy, macro_f1
from softprompt_zoo.training.objectives import labels
from softprompt_zoo.training.objectives.classification import METRICS
from softprompt_zoo.training.objectives.objective import Measured, Metric
from softprompt_zoo.training.objectives.rows import IGNORED, pad
from softprompt_zoo.training.objectives.task_heads import check_padding, ordered_classes, with_new_head
from softprompt_zoo.training.settings import DEFAULT_TEMPLATE, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base


@dataclasses.dataclass(frozen=True)
class TaggedRow:
    """Tokenized words and their tags."""

    ids: list[int]
    labels: list[int]
    """The class of each word, at its first token; `IGNORED` elsewhere."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> list[int]:
        """The class of each word that has tokens."""
        return [label for label in self.labels if label != IGNORED]


class TokenClassification:
    """Words with tags, for a model with a task head, which is trained as well; an `Objective`."""

    name = "token-classification"
    options: Mapping[str, Any] = MappingProxyType({"train_head": True})
    model_class = "AutoModelForTokenClassification"
    metrics: tuple[Metric, ...] = METRICS
    loss_of = "word"

    def __init__(self, base: "Base", template: str, classes: Sequence[str], instruction: str = "") -> None:
        check_padding(base)
        if template != DEFAULT_TEMPLATE:
            raise DataError(f"--template is {template!r}, but words are read without a template; leave it out")
        if not base.tokenizer.is_fast:
            raise UnsupportedError(
                f"the tokenizer of {base.name} is not a fast one, so it does not say which word a token belongs to; "
                "use a fast tokenizer"
            )
        self.base, self.tokenizer, self.template = base, base.tokenizer, template
        self.classes = ordered_classes(base, self.model_class, classes)
        self.model_arguments: tuple[str, ...] = (f"num_labels={len(self.classes)}",)
        self._front = instruction.split()

    @staticmethod
    def learn(data: Data, settings: Settings) -> tuple[Data, dict[str, Any]]:
        """Find the classes of words."""
        train = _words(data.train)
        validation = _words(data.validation) if data.whole is None else train  # a random draw may lack a rare class
        words = dataclasses.replace(data, train=train, validation=validation, whole=None)
        labels.check_known(_words(data.validation), sorted({str(word.target) for word in train}))
        return data, {"classes": labels.learnable(words)}

    @property
    def facts(self) -> dict[str, Any]:
        """The classes, in the order of the head's outputs."""
        return {"classes": self.classes}

    def load(self, dtype: str) -> "PreTrainedModel":
        """Load the model with a head for the classes, its own if it has one, in eval mode."""
        return with_new_head(self.base, self.model_class, self.classes, dtype)

    def rows(self, examples: Sequence[Tagged]) -> list[TaggedRow]:
        """Tokenize words."""
        labels.check_known(_words(examples), self.classes)
        return [self._row(example.words, [self.classes.index(tag) for tag in example.tags]) for example in examples]

    def _row(self, words: Sequence[str], classes: Sequence[int]) -> TaggedRow:
        """Tokenize words, each with its class."""
        known = [*[IGNORED] * len(self._front), *classes]
        encoded = self.tokenizer([*self._front, *words], is_split_into_words=True)
        places, before, found = encoded.word_ids(), None, []
        for place in places:
            found.append(IGNORED if place is None or place == before else known[place])
            before = place
        return TaggedRow(list(encoded["input_ids"]), found)

    def longest(self, rows: Sequence[TaggedRow]) -> list[TaggedRow]:
        """Return the longest row."""
        return [max(rows, key=len)]

    def collate(self, rows: Sequence[TaggedRow]) -> dict[str, Tensor]:
        """Make a batch, with labels `(rows, length)` on the first token of every word."""
        batch = pad([row.ids for row in rows], self.tokenizer.pad_token_id)
        length = batch["input_ids"].shape[1]
        return {**batch, "labels": torch.tensor([row.labels + [IGNORED] * (length - len(row)) for row in rows])}

    def measure(
        self, model: "PreTrainedModel", examples: Sequence[Tagged], rows: Sequence[TaggedRow], count: int
    ) -> Measured:
        """Measure the loss, accuracy and macro-F1 over all words."""
        loss, predicted = self._predict(model, rows)
        said = [tag for tags in predicted for tag in tags]
        right = [tag for row in rows for tag in row.classes]
        metrics = {"accuracy": accuracy(said, right), "macro_f1": macro_f1(said, right)}
        return Measured(loss, metrics, [self._named(tags) for tags in predicted])

    @torch.no_grad()
    def _predict(self, model: "PreTrainedModel", rows: Sequence[TaggedRow]) -> tuple[float, list[list[int]]]:
        """Return the mean loss of the words and the most likely class of each word of each row."""
        model.eval()
        total, predicted = 0.0, [[0]] * len(rows)
        for chosen, batch in batches(model, rows, self.collate):
            output = model(**batch)
            is_word = batch["labels"] != IGNORED
            total += float(output.loss) * int(is_word.sum())
            best = output.logits.argmax(-1)
            for index, tags, mask in zip(chosen, best, is_word, strict=True):
                predicted[index] = tags[mask].tolist()
        return total / sum(len(row.classes) for row in rows), predicted

    def _named(self, tags: Sequence[int]) -> str:
        return " ".join(self.classes[tag] for tag in tags)

    def measured_on(self, rows: int, count: int) -> str:
        """Describe how the numbers of a table were measured."""
        return f"loss per word, accuracy and macro-F1 of {len(self.classes)} classes over the words of {rows} rows"

    def with_instruction(self, instruction: str) -> "TokenClassification":
        """Return a copy that puts the words of a hand-written prompt before every row."""
        return TokenClassification(self.base, self.template, self.classes, instruction)

    def with_examples(self, pieces: Sequence[str]) -> "TokenClassification":
        """Raise an error: its models read no answers."""
        raise UnsupportedError(
            "this model predicts the classes of words and reads no answers, so it cannot be given examples"
        )

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""
        return len(self.tokenizer(instruction, add_special_tokens=False)["input_ids"])

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Tag the words of every text, which is split at white space."""
        rows = [self._row(text.split(), [0] * len(text.split())) for text in texts]
        check_tokens(rows, model)
        return [self._named(tags) for tags in self._predict(model, rows)[1]]

    def shown(self, example: Tagged) -> tuple[str, str]:
        """Return the words and their tags."""
        return " ".join(example.words), " ".join(example.tags)


def _words(examples: Sequence[Tagged]) -> list[Example]:
    """Split rows into words with tags, each with the place of its row."""
    return [
        Example(word, tag, place=example.place)
        for example in examples
        for word, tag in zip(example.words, example.tags, strict=True)
    ]
