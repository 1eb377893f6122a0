"""From files to batches: reading, splitting, tokenizing, padding."""

import dataclasses
import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from softprompt_zoo.examples import Example, apply_template, demo_data
from softprompt_zoo.examples.reading import Reading
from softprompt_zoo.examples.sources import Source
from softprompt_zoo.training.objectives.rows import IGNORED as IGNORED
from softprompt_zoo.training.objectives.rows import pad as pad
from softprompt_zoo.training.settings import OBJECTIVES, Settings
from softprompt_zoo.training.streams import Stream

MAX_HELD_OUT = 100
"""Maximum number of rows held out for validation, if the user gives no validation file."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The training and validation data of a run."""

    train: Any
    """Examples of one form: a list or a `Stream`."""
    validation: list[Any]
    sources: dict[str, dict[str, Any]]
    """For the record: the path, SHA-256 and rows of each file."""
    whole: list[Any] | None = None
    """All rows in file order, if the validation rows were held out from them."""
    form: str = "pairs"
    """The form of the examples, one of `FORMS`."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A tokenized example."""

    text: list[int]
    target: list[int]

    @property
    def ids(self) -> list[int]:
        """All tokens of the row."""
        return self.text + self.target

    def __len__(self) -> int:
        return len(self.text) + len(self.target)


def read_data(settings: Settings) -> Data:
    """Read the data of a run; streamed data are read once in full, so that every row is checked.

    Args:
        settings: The run.

    Returns:
        The data.

    Raises:
        ValueError: If a file or a row cannot be used, or nothing can be held out.
    """
    train_source, validation_source = data_sources(settings)
    form = OBJECTIVES.get(settings.objective or "")
    fields = {"input_field": settings.input_field, "target_field": settings.target_field}
    reading = Reading(train_source, form, **fields)
    train: list[Any] | Stream = _stream(reading) if settings.streaming else [*reading]
    sources = {"train": _source(train_source, len(train))}
    if validation_source is not None:
        own = settings.validation is not None or not settings.is_demo
        validation = [*Reading(validation_source, reading.form, **(fields if own else {}))]
        sources["validation"] = _source(validation_source, len(validation))
        return Data(train, validation, sources, form=reading.form)
    if len(train) == 1:
        raise ValueError(
            f"{train_source.name} has one row, which leaves none to validate on; add rows or give --validation"
        )
    held_out = _held_out(len(train), settings.seed)
    kept = _without(reading, train, held_out)
    validation = [example for index, example in enumerate(train) if index in held_out]
    return Data(kept, validation, sources, None if settings.streaming else [*train], reading.form)


def _stream(reading: Reading) -> Stream:
    return Stream(reading, sum(1 for _ in reading))


def _without(reading: Reading, train: Iterable[Any], held_out: Collection[int]) -> "list[Any] | Stream":
    if isinstance(train, Stream):
        return Stream(reading, len(train), held_out)
    return [example for index, example in enumerate(train) if index not in held_out]


def _held_out(rows: int, seed: int) -> set[int]:
    """Choose a tenth of the rows for validation, at most `MAX_HELD_OUT`."""
    return set(random.Random(seed).sample(range(rows), min(MAX_HELD_OUT, max(1, rows // 10))))


def data_sources(settings: Settings) -> tuple[Source, Source | None]:
    """Return the data sources of a run.

    Args:
        settings: The run.

    Returns:
        The source of the training data, and that of the validation data if it is a separate one.
    """
    if settings.data is None:
        train = Source(str(demo_data() / "train.jsonl"))
        own = Source(str(demo_data() / "validation.jsonl"))
        return train, own if settings.validation is None else Source(settings.validation)
    train = Source(settings.data, settings.split, settings.subset, settings.streaming)
    if settings.validation is not None:
        return train, Source(settings.validation, settings.validation_split)
    if settings.validation_split is not None:
        return train, dataclasses.replace(train, split=settings.validation_split)
    return train, None


def _source(source: Source, rows: int) -> dict[str, Any]:
    parts = {name: part for name, part in (("split", source.split), ("subset", source.subset)) if part is not None}
    return {"path": source.name, "sha256": source.checksum(), "rows": rows, **parts}


class Tokenized:
    """Tokenizes examples for one model and one template."""

    def __init__(self, tokenizer: Any, is_encoder_decoder: bool, template: str, examples: Sequence[str] = ()) -> None:
        """Configure how rows are tokenized.

        Args:
            tokenizer: The model's tokenizer.
            is_encoder_decoder: Whether the model reads targets separately from texts.
            template: Template that turns an input into the text before its target.
            examples: Pieces of text to put before every text, each tokenized separately.
        """
        self.tokenizer = tokenizer
        self.is_encoder_decoder = is_encoder_decoder
        self.template = template
        self._front = [token for piece in examples for token in self._plain(piece)]

    def with_instruction(self, instruction: str) -> "Tokenized":
        """Return one that puts a hand-written prompt and a blank line before every text."""
        kept = instruction.replace("{", "{{").replace("}", "}}")
        return Tokenized(self.tokenizer, self.is_encoder_decoder, f"{kept}\n\n{self.template}")

    def with_examples(self, examples: Sequence[str]) -> "Tokenized":
        """Return one that puts pieces of text before every text, each tokenized separately."""
        return Tokenized(self.tokenizer, self.is_encoder_decoder, self.template, examples)

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _behind_front(self, ids: list[int], text: str) -> list[int]:
        """Insert examples before a text, after its leading special tokens."""
        own = self._plain(text)
        first = next((place for place in range(len(ids)) if ids[place : place + len(own)] == own), 0)
        return [*ids[:first], *self._front, *ids[first:]]

    def text_ids(self, example: Example) -> list[int]:
        """Tokenize the text before the target."""
        text = apply_template(self.template, example)
        ids: list[int] = self.tokenizer(text)["input_ids"]
        ends = not self.is_encoder_decoder and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
        if not ids:
            raise ValueError(
                f"the input {example.input!r} has no tokens in the template {self.template!r}; "
                "every text needs at least one; change the input or the template"
            )
        # Some tokenizers append an end of sequence to every text, but the target follows this one.
        ids = ids[:-1] if ends else ids
        return self._behind_front(ids, text) if self._front else ids

    def row(self, example: Example) -> Row:
        """Tokenize text and target; the target ends with exactly one end of sequence."""
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
    """Return the largest rows: the longest one, and those with the longest text and the longest target."""
    return [max(rows, key=len), max(rows, key=lambda row: len(row.text)), max(rows, key=lambda row: len(row.target))]


class Collator:
    """Pads rows into a batch; only targets count in the loss."""

    def __init__(self, pad_id: int, is_encoder_decoder: bool) -> None:
        self.pad_id = pad_id
        self.is_encoder_decoder = is_encoder_decoder

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Make a batch of `(rows, length)` tensors."""
        texts, labels = zip(*map(self._pair, rows), strict=True)
        return {**pad(texts, self.pad_id), "labels": pad(labels, IGNORED)["input_ids"]}

    def _pair(self, row: Row) -> tuple[list[int], list[int]]:
        """Return the tokens of a row that the model reads, and its labels."""
        if self.is_encoder_decoder:
            return row.text, row.target
        return row.text + row.target, [IGNORED] * len(row.text) + row.target
