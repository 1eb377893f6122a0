"""Encode texts with soft slots: a template and its fields become token ids, a mask and virtual token positions."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from softprompt_zoo.config.checks import check_choice, check_positive_integer
from softprompt_zoo.shapes import Int
from softprompt_zoo.text.chats import chat_pieces
from softprompt_zoo.text.templates import Field, Slot, Template, check_count, parse

if TYPE_CHECKING:
    from transformers import BatchEncoding

TEXT = -1
"""Value in `soft_slots` for text."""


def encode(
    tokenizer: Any,
    template: "str | Sequence[Mapping[str, Any]]",
    /,
    *,
    max_length: int | None = None,
    padding: str = "longest",
    **fields: "str | Iterable[str]",
) -> "BatchEncoding":
    """Turn a template with soft slots into the inputs of a prompted model.

    In the template, `{soft:10}` stands for the next ten virtual tokens, counted from 0 over the template;
    `{soft[0:3]}` for tokens 0, 1 and 2 and `{soft[4]}` for token 4, regardless of the count, so that one token may
    occur in several places; `{name}` for the field of that name; and `{{` and `}}` for braces. Everything else is
    ordinary text. The text between two slots, with its fields filled in, is tokenized in one piece, exactly as written.

    Args:
        tokenizer: A transformers tokenizer.
        template: A text; or a chat, a list of `{"role": …, "content": …}`, which is formatted with the tokenizer's
            chat template. A chat that does not end with the assistant gets the generation prompt at its end.
        max_length: Maximum length of a row, in tokens. In longer rows the fields are truncated at the end, the longest
            field first, but never a slot or a word of the template. `None` for any length.
        padding: `"longest"` pads to the longest row, `"max_length"` to `max_length`, on `tokenizer.padding_side`.
        **fields: A text for each field of the template, or an iterable of texts, one for each row.

    Returns:
        Tensors `(rows, length)`: `input_ids`, `attention_mask`, `soft_slots` (which virtual token is there, -1 for
        text) and, if the tokenizer gives them, `token_type_ids`. Slots hold an id that is neither padding nor an end.
        The tokenizer's special tokens are at the ends of a text.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a slot is malformed, a field is missing, unknown or has a different number of rows than others,
            or the slots and words of the template are too long for `max_length`.
    """
    if not callable(tokenizer):
        raise TypeError(f"tokenizer is {type(tokenizer).__name__}; expected a transformers tokenizer")
    parsed = parse(template)
    _check_lengths(parsed, max_length, padding)
    rows = _rows(_field_names(parsed), fields)
    ends = ([], []) if parsed.messages else _special_ends(tokenizer)
    encoder = _Encoder(tokenizer, parsed, ends, _placeholder(tokenizer))
    encoded = [_fitting_row(encoder, values, max_length) for values in rows]
    _check_not_empty(encoded)
    return _pad(tokenizer, encoded, max_length if padding == "max_length" else None)


def _field_names(template: Template) -> list[str]:
    return [part.name for part in template.all_parts if isinstance(part, Field)]


def _check_lengths(parsed: Template, max_length: int | None, padding: str) -> None:
    if max_length is not None:
        check_positive_integer("max_length", max_length)
    check_count(parsed, max_length)
    check_choice("padding", padding, ("longest", "max_length"))
    if padding == "max_length" and max_length is None:
        raise ValueError(
            f"padding={padding!r} needs max_length, which is {max_length}; give both, or padding='longest'"
        )


@dataclasses.dataclass
class _Row:
    """One encoded row."""

    ids: list[int] = dataclasses.field(default_factory=list)
    slots: list[int] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add_text(self, ids: list[int]) -> None:
        """Append tokens."""
        self.ids += ids
        self.slots += [TEXT] * len(ids)


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """Encodes the rows of one call."""

    tokenizer: Any
    parsed: Template
    ends: tuple[list[int], list[int]]
    """Special tokens in front of a row and after it."""
    placeholder: int

    def row(self, values: Mapping[str, str]) -> _Row:
        """Encode one row of any length."""
        pieces = [_fill(parts, values) for parts in self.parsed.parts]
        row = _Row()
        row.add_text(self.ends[0])
        for piece in (
            chat_pieces(self.tokenizer, self.parsed.messages, pieces, values) if self.parsed.messages else pieces[0]
        ):
            if isinstance(piece, str):
                row.add_text(_ids(self.tokenizer, piece))
            else:
                row.ids += [self.placeholder] * len(piece.tokens)
                row.slots += piece.tokens
        row.add_text(self.ends[1])
        return row


def _rows(names: list[str], fields: Mapping[str, Any]) -> list[dict[str, str]]:
    """Spread the fields over the rows."""
    _check_fields(names, fields)
    lists = {name: _texts(name, value) for name, value in fields.items() if not isinstance(value, str)}
    count = _count_rows(dict(zip(lists, map(len, lists.values()), strict=True)))
    columns = {name: lists.get(name, [text] * count) for name, text in fields.items()}
    return [{name: column[row] for name, column in columns.items()} for row in range(count)]


def _count_rows(lengths: Mapping[str, int]) -> int:
    """Return the number of rows, from the number of texts of each field that has one for each row."""
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(
            f"the fields have different numbers of rows: {shown}; give one text for each row, or one for all"
        )
    name, count = next(iter(lengths.items()), ("", 1))
    if count == 0:
        raise ValueError(f"field {name!r} is empty; give at least one text")
    return count


def _check_fields(names: list[str], fields: Mapping[str, Any]) -> None:
    """Refuse unknown fields, and a template with fields that are missing."""
    _check_known(names, fields)
    for name in names:
        if name not in fields:
            raise ValueError(f"the template has {{{name}}}, which is missing; pass {name}=…")


def _check_known(names: list[str], fields: Iterable[str]) -> None:
    for name in fields:
        if name not in names:
            there = ", ".join(f"{{{own}}}" for own in dict.fromkeys(names)) or "no field"
            raise ValueError(f"unknown field {name!r}; the template has {there}")


def _texts(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, value)) or "none"
        raise TypeError(f"field {name!r} is a mapping with the keys {keys}; give one of its values: a text, or texts")
    if not isinstance(value, Iterable):
        raise TypeError(
            f"field {name!r} is {value!r} ({type(value).__name__}); expected a text, or an iterable of texts"
        )
    return [_text(name, row, text) for row, text in enumerate(value)]


def _text(name: str, row: int, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"field {name!r} has {value!r} ({type(value).__name__}) in row {row}; expected a text")
    return value


def _special_ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Find the special tokens that the tokenizer adds before and after a text."""
    plain, whole = _ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise ValueError(
        f"the tokenizer makes {whole} of 'a' with special tokens and {plain} without, so it is unknown where "
        "its special tokens are; use another tokenizer"
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _fill(parts: list[str | Field | Slot], values: Mapping[str, str]) -> list[str | Slot]:
    """Fill the fields, and join the text between two slots into one piece."""
    pieces: list[str | Slot] = [""]
    for part in parts:
        if isinstance(part, Slot):
            pieces += [part, ""]
        else:
            pieces[-1] += values[part.name] if isinstance(part, Field) else part  # type: ignore[operator]
    return pieces


def _check_not_empty(rows: list[_Row]) -> None:
    for number, row in enumerate(rows):
        if not row.ids:
            raise ValueError(f"row {number} has no tokens; give a template with slots or words, or a longer text")


def _fitting_row(encoder: _Encoder, values: Mapping[str, str], max_length: int | None) -> _Row:
    row = encoder.row(values)
    return row if max_length is None or len(row.ids) <= max_length else _shorten(encoder, values, max_length)


def _shorten(encoder: _Encoder, values: Mapping[str, str], max_length: int) -> _Row:
    """Truncate every field to the same number of tokens, the largest with which the row fits."""
    ends = {name: _token_ends(encoder.tokenizer, text) for name, text in values.items()}

    def cut(count: int) -> _Row:
        return encoder.row({name: _first_tokens(text, ends[name], count) for name, text in values.items()})

    fitting, low, high = cut(0), 0, max(map(len, ends.values()), default=0)
    _check_template_fits(fitting, max_length)
    while high - low > 1:
        middle = (low + high) // 2
        row = cut(middle)
        if len(row.ids) <= max_length:
            fitting, low = row, middle
        else:
            high = middle
    return fitting


def _first_tokens(text: str, ends: list[int], count: int) -> str:
    """Truncate a text to a number of tokens; `ends` lists the characters after which it may be cut."""
    if count >= len(ends):
        return text
    return text[: ends[count - 1]] if count else ""


def _check_template_fits(row: _Row, max_length: int) -> None:
    """Refuse a row that is too long even with empty fields."""
    if len(row.ids) > max_length:
        slots = sum(slot != TEXT for slot in row.slots)
        raise ValueError(
            f"max_length is {max_length}, but the template alone has {slots} slots and {len(row.ids) - slots} "
            "other tokens, which are never cut; use fewer slots or words, or a larger max_length"
        )


def _token_ends(tokenizer: Any, text: str) -> list[int]:
    """Return the positions of characters after which a text may be cut."""
    if not getattr(tokenizer, "is_fast", False):
        return list(range(1, len(text) + 1))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return sorted({end for _, end in offsets})


def _placeholder(tokenizer: Any) -> int:
    """Choose the id for slots in `input_ids`.

    Neither padding nor an end: classifiers look for the last token that is not padding, or for the last end.
    """
    ends = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in ends:
        return int(tokenizer.unk_token_id)
    special = set(tokenizer.all_special_ids)
    return next((token for token in range(len(tokenizer)) if token not in special), 0)


def _pad(tokenizer: Any, rows: list[_Row], length: int | None) -> "BatchEncoding":
    from transformers import BatchEncoding

    length = length or max(map(len, rows))
    _check_padding(tokenizer, min(map(len, rows)), length)
    form = (length, tokenizer.padding_side)
    columns = {"input_ids": _column([row.ids for row in rows], tokenizer.pad_token_id, *form)}
    if "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = torch.zeros_like(columns["input_ids"])
    columns["attention_mask"] = _column([[1] * len(row) for row in rows], 0, *form)
    columns["soft_slots"] = _column([row.slots for row in rows], TEXT, *form)
    return BatchEncoding(columns)


def _check_padding(tokenizer: Any, shortest: int, length: int) -> None:
    if tokenizer.pad_token_id is None and shortest < length:
        raise ValueError(
            f"rows of different lengths need padding, here to {length} tokens, but the tokenizer has no pad token; set "
            "tokenizer.pad_token = tokenizer.eos_token"
        )


def _column(rows: list[list[int]], filler: int, length: int, side: str) -> Int[torch.Tensor, "rows length"]:
    """Pad rows on one side."""
    pads = [[filler] * (length - len(row)) for row in rows]
    pairs = zip(pads, rows, strict=True) if side == "left" else zip(rows, pads, strict=True)
    return torch.tensor([first + second for first, second in pairs])
