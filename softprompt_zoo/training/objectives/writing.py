"""Writing text: the loss of the target tokens after the input, and ROUGE-L of generated answers."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from softprompt_zoo.examples import Example
from softprompt_zoo.training.base import check_tokens
from softprompt_zoo.training.data import Collator, Data, Row, Tokenized, longest
from softprompt_zoo.training.evaluation import generate, target_loss
from softprompt_zoo.training.metrics import rouge_l
from softprompt_zoo.training.objectives.objective import Measured, Metric
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base

LENGTH_MARGIN = 8
"""Number of tokens by which an answer may exceed the longest target."""


class Writing:
    """Pairs of input and target text; an `Objective`."""

    name = "writing"
    options: Mapping[str, Any] = MappingProxyType({})
    model_arguments: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = (Metric("rouge_l", "ROUGE-L"),)
    loss_of = "target token"

    def __init__(self, base: "Base", template: str, examples: Sequence[str] = ()) -> None:
        base.check_writes_text()
        self.base, self.tokenizer = base, base.tokenizer
        self.model_class = "AutoModelForSeq2SeqLM" if base.is_encoder_decoder else "AutoModelForCausalLM"
        self._tokenized = Tokenized(self.tokenizer, base.is_encoder_decoder, template, examples)
        self._collator = Collator(self.tokenizer.pad_token_id, base.is_encoder_decoder)

    @property
    def template(self) -> str:
        """Template that turns an input into the text before its target."""
        return self._tokenized.template

    @staticmethod
    def learn(data: Data, settings: Settings) -> tuple[Data, dict[str, Any]]:
        """Return the data unchanged."""
        return data, {}

    @property
    def facts(self) -> dict[str, Any]:
        """Nothing is learned from the data."""
        return {}

    def load(self, dtype: str) -> "PreTrainedModel":
        """Load the required model, in eval mode."""
        return self.base.load(dtype)

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenize examples."""
        return self._tokenized.rows(examples)

    def longest(self, rows: Sequence[Row]) -> list[Row]:
        """Return the largest rows."""
        return longest(rows)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Make a batch; only targets have labels."""
        return self._collator(rows)

    def measure(
        self, model: "PreTrainedModel", examples: Sequence[Example], rows: Sequence[Row], count: int
    ) -> Measured:
        """Measure the loss on all rows, and ROUGE-L of greedy answers to the first ones."""
        loss = target_loss(model, rows, self.collate)
        most = max(len(row.target) for row in rows) + LENGTH_MARGIN
        answers = generate(model, self.tokenizer, [row.text for row in rows[:count]], most)
        scores = [rouge_l(answer, example.references) for answer, example in zip(answers, examples, strict=False)]
        return Measured(loss, {"rouge_l": sum(scores) / len(scores)}, answers)

    def measured_on(self, rows: int, count: int) -> str:
        """Describe how the numbers of a table were measured."""
        return f"loss per target token on {rows} rows, ROUGE-L F1 of {count} greedy answers"

    def with_instruction(self, instruction: str) -> "Writing":
        """Return a copy that puts a hand-written prompt and a blank line before every text."""
        return Writing(self.base, self._tokenized.with_instruction(instruction).template)

    def with_examples(self, pieces: Sequence[str]) -> "Writing":
        """Return a copy that puts pieces of text before every text, each tokenized separately."""
        return Writing(self.base, self.template, pieces)

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""
        return len(self.tokenizer(instruction, add_special_tokens=False)["input_ids"])

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Generate an answer to every text."""
        ids = [self._tokenized.text_ids(Example(text, None)) for text in texts]
        check_tokens([Row(text, []) for text in ids], model)
        return generate(model, self.tokenizer, ids, most)

    def shown(self, example: Example) -> tuple[str, str]:
        """Return the input and the first reference."""
        return example.input, example.references[0]
