"""Chats: the loss of what the assistant says, in every turn, and ROUGE-L of its last answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.errors import DataError, UnsupportedError
from softprompt_zoo.examples.chats import Chat
from softprompt_zoo.training.base import check_tokens
from softprompt_zoo.training.data import Data
from softprompt_zoo.training.evaluation import generate, target_loss
from softprompt_zoo.training.metrics import rouge_l
from softprompt_zoo.training.objectives.chat_text import ChatText
from softprompt_zoo.training.objectives.objective import Measured, Metric
from softprompt_zoo.training.objectives.rows import IGNORED, pad
from softprompt_zoo.training.objectives.writing import LENGTH_MARGIN
from softprompt_zoo.training.settings import DEFAULT_TEMPLATE, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base


@dataclasses.dataclass(frozen=True)
class ChatRow:
    """A tokenized chat."""

    ids: list[int]
    labels: list[int]
    """The ids of the assistant's tokens; `IGNORED` elsewhere."""
    start: int
    """Index of the first token of the assistant's last turn."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def answer(self) -> list[int]:
        """The ids of the assistant's last turn."""
        return [label for label in self.labels[self.start :] if label != IGNORED]


class Chatting:
    """Chats, for a decoder whose tokenizer has a chat template; an `Objective`."""

    name = "chat"
    options: Mapping[str, Any] = MappingProxyType({})
    model_class = "AutoModelForCausalLM"
    model_arguments: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = (Metric("rouge_l", "ROUGE-L"),)
    loss_of = "token of the assistant"

    def __init__(self, base: "Base", template: str, instruction: str | None = None) -> None:
        base.check_writes_text()
        if template != DEFAULT_TEMPLATE:
            raise DataError(
                f"--template is {template!r}, but messages are rendered with the model's chat template; leave it out"
            )
        if base.is_encoder_decoder:
            raise UnsupportedError(f"{base.name} is an encoder-decoder; chats need a decoder; choose one")
        self.base, self.tokenizer, self.template = base, base.tokenizer, template
        self._text = ChatText(base, instruction)

    @staticmethod
    def learn(data: Data, settings: Settings) -> tuple[Data, dict[str, Any]]:
        """Return the data unchanged."""
        return data, {}

    @property
    def facts(self) -> dict[str, Any]:
        """Nothing is learned from the data."""
        return {}

    def load(self, dtype: str) -> "PreTrainedModel":
        """Load the language model, in eval mode."""
        return self.base.load(dtype)

    def rows(self, examples: Sequence[Chat]) -> list[ChatRow]:
        """Tokenize chats."""
        return [self._row(chat) for chat in examples]

    def _row(self, chat: Chat) -> ChatRow:
        text, spans = self._text.spans(chat)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        labels, start = [IGNORED] * len(ids), 0
        for first, end in spans:
            # A token that overlaps a turn belongs to it.
            own = [place for place, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > first]
            for place in own:
                labels[place] = ids[place]
            start = own[0]
        return ChatRow(ids, labels, start)

    def longest(self, rows: Sequence[ChatRow]) -> list[ChatRow]:
        """Return the longest row."""
        return [max(rows, key=len)]

    def collate(self, rows: Sequence[ChatRow]) -> dict[str, Tensor]:
        """Make a batch; only the assistant's tokens have labels."""
        batch = pad([row.ids for row in rows], self.tokenizer.pad_token_id)
        length = batch["input_ids"].shape[1]
        labels = [row.labels + [IGNORED] * (length - len(row)) for row in rows]
        return {**batch, "labels": torch.tensor(labels)}

    def measure(
        self, model: "PreTrainedModel", examples: Sequence[Chat], rows: Sequence[ChatRow], count: int
    ) -> Measured:
        """Measure the loss of all turns, and ROUGE-L of greedy answers for the last turns of the first rows."""
        loss = target_loss(model, rows, self.collate)
        most = max(len(row.answer) for row in rows) + LENGTH_MARGIN
        answers = generate(model, self.tokenizer, [row.ids[: row.start] for row in rows[:count]], most)
        right = self.tokenizer.batch_decode([row.answer for row in rows[:count]], skip_special_tokens=True)
        scores = [rouge_l(answer, [reference]) for answer, reference in zip(answers, right, strict=True)]
        return Measured(loss, {"rouge_l": sum(scores) / len(scores)}, answers)

    def measured_on(self, rows: int, count: int) -> str:
        """Describe how the numbers of a table were measured."""
        return f"loss per token of the assistant in {rows} chats, ROUGE-L F1 of {count} greedy last answers"

    def with_instruction(self, instruction: str) -> "Chatting":
        """Return a copy that puts a hand-written prompt into the system message."""
        return Chatting(self.base, self.template, instruction)

    def with_examples(self, pieces: Sequence[str]) -> "Chatting":
        """Return a copy that puts examples into the system message."""
        return self.with_instruction("".join(pieces).strip())

    def instruction_tokens(self, instruction: str) -> int:
        """Count the tokens of a hand-written prompt."""
        return len(self.tokenizer(instruction, add_special_tokens=False)["input_ids"])

    def answer(self, model: "PreTrainedModel", texts: Sequence[str], most: int) -> list[str]:
        """Answer every text, each as a user's message in a new chat."""
        questions = [self._text.question(Chat(({"role": "user", "content": text},))) for text in texts]
        ids = [list(self.tokenizer(question, add_special_tokens=False)["input_ids"]) for question in questions]
        check_tokens([ChatRow(text, [], 0) for text in ids], model)
        return generate(model, self.tokenizer, ids, most)

    def shown(self, example: Chat) -> tuple[str, str]:
        """Return the message before the last answer, and that answer."""
        turn = example.turns[-1]
        return _said(example.messages[turn - 1]), _said(example.messages[turn])


def _said(message: Mapping[str, Any]) -> str:
    return str(message.get("content") or message["tool_calls"])
