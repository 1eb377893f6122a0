"""Demonstrations: few-shot examples in a template, as token ids with their kinds.

The kinds are those of context-aware prompt tuning (Blau et al., 2024, arXiv 2410.17222, section 3).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from softprompt_zoo import placeholders

IGNORED = -100
"""Label that the losses of transformers ignore."""
SEPARATOR, INPUT, TARGET = 0, 2, 4
"""Kinds of tokens; the template in front of a field has the number before it. In example i, counted from 0, a token
has the type `4 * i + kind`, a separator 0."""


def read_pairs(examples: Any) -> tuple[tuple[str, str], ...]:
    """Read examples as pairs.

    Args:
        examples: A sequence of pairs `(input, target)`, or of mappings with these fields.

    Returns:
        The pairs.

    Raises:
        TypeError: If it is not a sequence, or a field is not a text.
        ValueError: If an example lacks a field, or is not a pair.
    """
    if isinstance(examples, str | Mapping) or not isinstance(examples, Sequence):
        raise TypeError(f"examples is {examples!r}; expected a sequence of pairs (input, target)")
    return tuple(_pair(f"examples[{index}]", example) for index, example in enumerate(examples))


def _pair(where: str, example: Any) -> tuple[str, str]:
    fields = _fields(where, example) if isinstance(example, Mapping) else example
    if not _is_pair(fields):
        raise ValueError(f"{where} is {example!r}; expected a pair (input, target)")
    text, target = fields
    if not isinstance(text, str) or not isinstance(target, str):
        raise TypeError(f"{where} is {example!r}; expected two texts, (input, target)")
    return text, target


def _fields(where: str, example: Mapping[str, Any]) -> tuple[Any, Any]:
    missing = next((name for name in ("input", "target") if name not in example), None)
    if missing is not None:
        there = ", ".join(map(repr, example)) or "no field"
        raise ValueError(f"{where} has no {missing!r}; expected 'input' and 'target', but it has {there}")
    return example["input"], example["target"]


def _is_pair(fields: Any) -> bool:
    return isinstance(fields, Sequence) and not isinstance(fields, str) and len(fields) == 2


def split_template(template: Any) -> list[str]:
    """Split a template at its fields.

    Args:
        template: A text with one `{input}`, followed by one `{target}`.

    Returns:
        The parts before the input, before the target and after it.

    Raises:
        TypeError: If it is not a text.
        ValueError: If it has other fields.
    """
    rule = (
        "expected one {input}, followed by one {target}, as in 'input: {input} output: {target}'; double other braces"
    )
    if not isinstance(template, str):
        raise TypeError(f"template is {template!r}; {rule}")
    try:
        texts, fields = placeholders.split(template)
    except ValueError as error:
        raise ValueError(f"template is {template!r} ({error}); {rule}") from error
    if fields != ["input", "target"]:
        raise ValueError(f"template is {template!r}; {rule}")
    return texts


def tokenize_examples(tokenizer: Any, template: str | None, examples: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokenize examples one after the other.

    Args:
        tokenizer: A transformers tokenizer.
        template: The format of each.
        examples: Pairs `(input, target)`.

    Returns:
        The token ids, and the type of each.

    Raises:
        TypeError: If the tokenizer is not one.
        ValueError: If the template is unknown, or a target has no tokens.
    """
    _check_tokenizer(tokenizer)
    ids: list[int] = []
    types: list[int] = []
    for index, (text, target) in enumerate(examples):
        for piece, kind in _tokenize_pieces(tokenizer, template, text, target, f"examples[{index}]"):
            ids += piece
            types += [4 * index + kind if kind != SEPARATOR else SEPARATOR] * len(piece)
    return tuple(ids), tuple(types)


def tokenize_row(tokenizer: Any, template: str | None, text: str, target: str | None) -> dict[str, list[int]]:
    """Tokenize a text in the same way as the examples.

    Args:
        tokenizer: A transformers tokenizer.
        template: The format of the examples.
        text: The text for `{input}`.
        target: The text for `{target}`; without it, the row ends before that field.

    Returns:
        `input_ids`, `attention_mask` and, with a target, `labels`: the ids of its tokens, -100 elsewhere.

    Raises:
        TypeError: If the tokenizer is not one, or the text or the target is not a text.
        ValueError: If the template is unknown, or the target has no tokens.
    """
    _check_tokenizer(tokenizer)
    _check_one_text("text", text)
    if target is not None:
        _check_one_text("target", target)
    pieces = _tokenize_pieces(tokenizer, template, text, target, "the row")
    ids = [token for piece, _ in pieces for token in piece]
    row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    return row if target is None else {**row, "labels": _labels(pieces)}


def _check_one_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected one text: encode one row at a time")


def _labels(pieces: Sequence[tuple[list[int], int]]) -> list[int]:
    """Return the tokens of the target, and the ignored label for all others."""
    labels: list[int] = []
    for piece, kind in pieces:
        labels += piece if kind == TARGET else [IGNORED] * len(piece)
    return labels


def _check_tokenizer(tokenizer: Any) -> None:
    if not callable(tokenizer):
        raise TypeError(f"tokenizer is {type(tokenizer).__name__}; expected a transformers tokenizer")


def _tokenize_pieces(
    tokenizer: Any, template: str | None, text: str, target: str | None, where: str
) -> list[tuple[list[int], int]]:
    """Tokenize an example in pieces; return the ids and the kind of each piece."""
    if template is None:
        raise ValueError(
            "the template is unknown because the prompt was made from token ids; tokenize the text yourself"
        )
    pieces = _pieces(split_template(template), text, target)
    found = [(tokenizer(piece, add_special_tokens=False)["input_ids"], kind) for piece, kind in pieces if piece]
    if target is not None:
        _check_has_tokens(target, found, where)
    return found


def _check_has_tokens(target: str, pieces: list[tuple[list[int], int]], where: str) -> None:
    if not target.strip() or not any(ids for ids, kind in pieces if kind == TARGET):
        raise ValueError(f"the target of {where} is {target!r}, which has no tokens; give a target to learn")


def _pieces(template: list[str], text: str, target: str | None) -> list[tuple[str, int]]:
    """Split an example into pieces with their kinds; it ends before the target if there is none."""
    pieces = []
    for kind, before, field in ((INPUT, template[0], text), (TARGET, template[1], target)):
        form = before.rstrip(" ")
        pieces.append((form, kind - 1))
        if field is not None:
            pieces.append((before[len(form) :] + field, kind))
    return pieces if target is None else [*pieces, (template[2], SEPARATOR)]
