"""From files to batches: reading, splitting, tokenizing, padding."""

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt_zoo.examples import Example, apply_template, read_examples
from softprompt_zoo.training.objectives.rows import IGNORED as IGNORED
from softprompt_zoo.training.objectives.rows import pad as pad
from softprompt_zoo.training.settings import Settings, data_files

MAX_HELD_OUT = 100
"""Rows held out for validation at most, where the user gives no file for it."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run trains on and is measured on."""

    train: list[Example]
    validation: list[Example]
    sources: dict[str, dict[str, Any]]
    """For the record: of each file its path, SHA-256 and rows."""
    whole: list[Example] | None = None
    """All rows in the order of the file, where those of the validation were held out of it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A tokenized example."""

    text: list[int]
    target: list[int]

    @property
    def ids(self) -> list[int]:
        """Every token of it."""
        return self.text + self.target

    def __len__(self) -> int:
        return len(self.text) + len(self.target)


def read_data(settings: Settings) -> Data:
    """Read the files of a run.

    Args:
        settings: The run.

    Returns:
        The rows.

    Raises:
        ValueError: If a file or a row cannot be used, or nothing can be held out.
    """
    train_file, validation_file = data_files(settings)
    fields: dict[str, Any] = {"input_field": settings.input_field, "target_field": settings.target_field}
    train = read_examples(train_file, **fields)
    sources = {"train": _source(train_file, train)}
    if validation_file is not None:
        own = settings.validation is not None or not settings.is_demo
        validation = read_examples(validation_file, **(fields if own else {}))
        sources["validation"] = _source(validation_file, validation)
        return Data(train, validation, sources)
    if len(train) == 1:
        raise ValueError(f"{train_file} has one row, which leaves none to validate on; add rows or give --validation")
    return Data(*_split(train, settings.seed), sources, train)


def _split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out a tenth of the examples for validation."""
    count = min(MAX_HELD_OUT, max(1, len(examples) // 10))
    held_out = set(random.Random(seed).sample(range(len(examples)), count))
    kept = [example for index, example in enumerate(examples) if index not in held_out]
    return kept, [examples[index] for index in sorted(held_out)]


def _source(path: Path, rows: Sequence[Example]) -> dict[str, Any]:
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": len(rows)}


class Tokenized:
    """Turns examples into rows of tokens for one model and one template."""

    def __init__(self, tokenizer: Any, is_encoder_decoder: bool, template: str) -> None:
        self.tokenizer = tokenizer
        self.is_encoder_decoder = is_encoder_decoder
        self.template = template

    def with_instruction(self, instruction: str) -> "Tokenized":
        """Return one that puts a hand-written prompt and a blank line in front."""
        kept = instruction.replace("{", "{{").replace("}", "}}")
        return Tokenized(self.tokenizer, self.is_encoder_decoder, f"{kept}\n\n{self.template}")

    def text_ids(self, example: Example) -> list[int]:
        """Tokenize what is in front of the target."""
        ids: list[int] = self.tokenizer(apply_template(self.template, example))["input_ids"]
        ends = not self.is_encoder_decoder and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
        if not ids:
            raise ValueError(
                f"the input {example.input!r} has no tokens in the template {self.template!r}; "
                "every text needs at least one; change the input or the template"
            )
        # Some tokenizers end every text; the target still has to follow this one.
        return ids[:-1] if ends else ids

    def row(self, example: Example) -> Row:
        """Tokenize text and target; the target ends with the end of sequence, once."""
        end = self.tokenizer.eos_token_id
        if self.is_encoder_decoder:
            target = list(self.tokenizer(text_target=example.target)["input_ids"])
        else:
            target = list(self.tokenizer(example.target, add_special_tokens=False)["input_ids"])
        return Row(self.text_ids(example), target if target[-1:] == [end] else [*target, end])

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenize examples."""
        return [self.row(example) for example in examples]


def longest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that need most room: the longest one, the one of the longest text, and of the longest target."""
    return [max(rows, key=len), max(rows, key=lambda row: len(row.text)), max(rows, key=lambda row: len(row.target))]


class Collator:
    """Pads rows into a batch; the loss sees targets only."""

    def __init__(self, pad_id: int, is_encoder_decoder: bool) -> None:
        self.pad_id = pad_id
        self.is_encoder_decoder = is_encoder_decoder

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Make a batch of `(rows, length)` tensors."""
        texts, labels = zip(*map(self._pair, rows), strict=True)
        return {**pad(texts, self.pad_id), "labels": pad(labels, IGNORED)["input_ids"]}

    def _pair(self, row: Row) -> tuple[list[int], list[int]]:
        """Return what the model reads of a row, and its labels."""
        if self.is_encoder_decoder:
            return row.text, row.target
        return row.text + row.target, [IGNORED] * len(row.text) + row.target
