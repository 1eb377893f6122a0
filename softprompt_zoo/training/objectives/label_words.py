"""Classification with a language model: each class has a word, and the most likely word is the answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples import Example
from softprompt_zoo.training.base import check_tokens
from softprompt_zoo.training.data import Data, Row
from softprompt_zoo.training.evaluation import batches, target_loss
from softprompt_zoo.training.metrics import accuracy, macro_f1
from softprompt_zoo.training.objectives import labels
from softprompt_zoo.training.objectives.classification import METRICS
from softprompt_zoo.training.objectives.objective import Measured, Metric
from softprompt_zoo.training.objectives.rows import IGNORED
from softprompt_zoo.training.objectives.writing import Writing
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base


class LabelWords:
    """Texts with labels, each represented by a word that the model writes; an `Objective`.

    Source: Schick and Schütze, "Exploiting Cloze Questions for Few Shot Text Classification", 2021 (arXiv 2001.07676),
    section 3, which calls the words a verbalizer; here they are written after the text, and may have several tokens.
    """

    name = "label-words"
    model_arguments: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = METRICS
    loss_of = "target token"

    def __init__(self, base: "Base", template: str, words: Mapping[str, str], examples: Sequence[str] = ()) -> None:
        self.words = dict(words)
        self.classes = list(words)
        self._writing = Writing(base, template, examples)
        self.base, self.options, self.model_class = base, self._writing.options, self._writing.model_class
        targets = [row.target for row in self._writing.rows([Example("-", word) for word in words.values()])]
        self._targets = targets if _is_ambiguous(targets) else [target[:-1] for target in targets]
        """The scored tokens of each word, with the end of sequence only if one word is a prefix of another."""

    @staticmethod
    def learn(data: Data, settings: Settings) -> tuple[Data, dict[str, Any]]:
        """Find the classes and their words, and hold out some rows of each class."""
        data = labels.hold_out(data, settings.seed)
        classes = labels.learnable(data)
        unknown = sorted(set(settings.label_words) - set(classes))
        if unknown:
            raise DataError(
                f"--label-word gives a word for {unknown[0]!r}, which is not the label of any row; existing labels: "
                f"{', '.join(map(repr, classes))}"
            )
        words = {label: settings.label_words.get(label, label) for label in classes}
        for label, word in words.items():
            if twice := [other for other in classes if other < label and words[other] == word]:
                raise DataError(f"--label-word: {twice[0]!r} and {label!r} have the same word, {word!r}; give two")
        return data, {"words": words}

    @property
    def facts(self) -> dict[str, Any]:
        """The word of each class."""
        return {"words": self.words}

    def load(self, dtype: str) -> "PreTrainedModel":
        """Load the language model, in eval mode."""
        return self._writing.load(dtype)

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenize examples; the target is the word of the class."""
        labels.check_known(examples, self.classes)
        return self._writing.rows([self._worded(example) for example in examples])

    def _worded(self, example: Example) -> Example:
        return dataclasses.replace(example, target=self.words[str(example.target)])

    def longest(self, rows: Sequence[Row]) -> list[Row]:
        """Return the largest rows."""
        return self._writing.longest(rows)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Make a batch; only the words have labels."""
        return self._writing.collate(rows)

    def measure(
        self, model: "PreTrainedModel", examples: Sequence[Example], rows: Sequence[Row], count: int
    ) -> Measured:
        """Measure the loss of the correct words, and the accuracy and macro-F1 of the most likely ones, on all rows."""
        answers = self._predict(model, [row.text for row in rows])
        right = [str(example.target) for example in examples]
        metrics = {"accuracy": accuracy(answers, right), "macro_f1": macro_f1(answers, right)}
        return Measured(target_loss(model, rows, self.collate), metrics, answers)

    @torch.no_grad()
    def _predict(self, model: "PreTrainedModel", texts: Sequence[list[int]]) -> list[str]:
        """Return, for each text, the class whose word is most probable."""
        model.eval()
        rows = [Row(text, target) for text in texts for target in self._targets]
        scores = torch.zeros(len(rows))
        for chosen, batch in batches(model, rows, self.collate):
            words = batch["labels"]
            logits = model(**{name: part for name, part in batch.items() if name != "labels"}, **self._shifted(words))
            scores[chosen] = self._log_probabilities(logits.logits, words).cpu()
        best = scores.view(len(texts), len(self.classes)).argmax(-1).tolist()
        return [self.classes[index] for index in best]

    def _shifted(self, words: Tensor) -> dict[str, Tensor]:
        """Return the labels for a model that derives its decoder's input from them."""
        return {"labels": words} if self.base.is_encoder_decoder else {}

    def _log_probabilities(self, logits: Tensor, words: Tensor) -> Tensor:
        """Return the log-probability `(rows,)` of each row's labels."""
        if not self.base.is_encoder_decoder:  # a decoder's logits are for the next token
            logits, words = logits[:, :-1], words[:, 1:]
        is_scored = words != IGNORED
        logs = logits.float().log_softmax(-1)
        return (logs.gather(-1, words.clamp(min=0)[..., None])[..., 0] * is_scored).sum(-1)

    def measured_on(self, rows: int, count: int) -> str:
        """Describe how the numbers of a table were measured."""
        return f"loss per target token, accuracy and macro-F1 of {len(self.classes)} label words on {rows} rows"

    def with_instruction(self, instruction: str) -> "LabelWords":
        """Return a copy that puts a hand-written prompt and a blank line before every text."""
        return LabelWords(self.base, self._writing.with_instruction(instruction).template, self.words)

    def with_examples(self, pieces: Sequence[str]) -> "LabelWords":
        """Return a copy that puts pieces of text before every text, each tokenized separately."""
        return LabelWords(self.base, self._writing.template, self.words, pieces)

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""
        return self._writing.instruction_tokens(instruction)

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Return the predicted class of every text."""
        rows = self._writing.rows([Example(text, next(iter(self.words.values()))) for text in texts])
        check_tokens(rows, model)
        return self._predict(model, [row.text for row in rows])

    def shown(self, example: Example) -> tuple[str, str]:
        """Return the input and its label."""
        return example.input, str(example.target)


def _is_ambiguous(targets: Sequence[list[int]]) -> bool:
    """Return whether a word is a prefix of another one, without their end tokens."""
    words = [target[:-1] for target in targets]
    return any(other[: len(word)] == word for i, word in enumerate(words) for j, other in enumerate(words) if i != j)
