"""Writing text: the loss of the target's tokens behind the input's, and ROUGE-L of what the model writes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from softprompt_zoo.examples import Example
from softprompt_zoo.training.data import Collator, Row, Tokenized, longest
from softprompt_zoo.training.evaluation import generate, target_loss
from softprompt_zoo.training.metrics import rouge_l
from softprompt_zoo.training.objectives.objective import Measured, Metric

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base

LENGTH_MARGIN = 8
"""Tokens that an answer may be longer than the longest target."""


class Writing:
    """Pairs of input and target text; an `Objective`."""

    name = "writing"
    metrics: tuple[Metric, ...] = (Metric("rouge_l", "ROUGE-L"),)
    loss_of = "target token"

    def __init__(self, tokenizer: Any, is_encoder_decoder: bool, template: str) -> None:
        self.tokenizer = tokenizer
        self.model_class = "AutoModelForSeq2SeqLM" if is_encoder_decoder else "AutoModelForCausalLM"
        self._tokenized = Tokenized(tokenizer, is_encoder_decoder, template)
        self._collator = Collator(tokenizer.pad_token_id, is_encoder_decoder)

    def load(self, base: "Base", dtype: str) -> "PreTrainedModel":
        """Load the model that it needs, in eval mode."""
        return base.load(dtype)

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenize examples."""
        return self._tokenized.rows(examples)

    def longest(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that need most room."""
        return longest(rows)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Make a batch; targets alone have labels."""
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
        """Say on what the numbers of a table are measured."""
        return f"loss per target token on {rows} rows, ROUGE-L F1 of {count} greedy answers"

    def with_instruction(self, instruction: str) -> "Writing":
        """Return one that puts a hand-written prompt and a blank line in front of every text."""
        template = self._tokenized.with_instruction(instruction).template
        return Writing(self.tokenizer, self._tokenized.is_encoder_decoder, template)

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""
        return len(self.tokenizer(instruction, add_special_tokens=False)["input_ids"])

    def shown(self, example: Example) -> tuple[str, str]:
        """Return the input, and the first right answer."""
        return example.input, example.references[0]
