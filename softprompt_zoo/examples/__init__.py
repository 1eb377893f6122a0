"""Reading pairs of input and target text from JSONL and CSV files."""

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from softprompt_zoo import placeholders
from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.rows import Row, listed, read_rows, short

_TARGET_OF = {"input": "target", "text": "label"}
_REFERENCES = "references"


@dataclass(frozen=True)
class Example:
    """One row of data."""

    input: str
    """The text before the answer."""
    target: str | None
    """The answer to learn; `None` only in files read with `need_target=False`."""
    references: tuple[str, ...] = ()
    """Every answer that counts as right; the target alone unless the row has others."""
    place: str = field(default="", compare=False, repr=False)
    """File and line, for messages."""


def demo_data() -> Path:
    """Find the data set that comes with this package.

    Returns:
        The folder with `train.jsonl`, `validation.jsonl` and `test.jsonl`.
    """
    return Path(str(importlib.resources.files("softprompt_zoo") / "data" / "museums"))


def read_examples(
    path: str | Path,
    *,
    input_field: str | None = None,
    target_field: str | None = None,
    need_target: bool = True,
) -> list[Example]:
    """Read a whole data file, or refuse it.

    Args:
        path: A `.jsonl` file with one object per line, or a `.csv` file with a header row.
        input_field: The field with the input; `input` or `text` unless given.
        target_field: The field with the target; `target` or `label` unless given. A JSONL row
            may have `references`, a list of right answers; the first is then the target unless
            the row has one of its own.
        need_target: Refuse rows without a target; if False their target is None.

    Returns:
        The rows in the order of the file, at least one.

    Raises:
        DataError: The file is missing or unreadable, or a row in it is not as described; the
            message names the file and the line.
    """
    path = Path(path)
    rows = list(read_rows(path))
    if not rows:
        raise DataError(f"{path}: has no rows; at least one is needed; add one or name another file")
    first = rows[0].fields
    names = _field_names(first, input_field, target_field)
    if names[0] == names[1]:
        raise DataError(
            f"input and target would both be read from field {names[0]!r} of {path}; they must"
            f" differ; fields there: {listed(first)}"
        )
    demand = _demand(target_field) if need_target else "never"
    return [_example(row, names, demand) for row in rows]


def _demand(target_field: str | None) -> str:
    """Return when a row must have a target."""
    return "always" if target_field else "unless referenced"


def _field_names(first: Mapping[str, object], input_field: str | None, target_field: str | None) -> tuple[str, str]:
    """Return the fields of input and target: those that were named, or those that the first row has."""
    own_input = _first_in(first, *_TARGET_OF)
    # A file may mix the pairs, such as input with label.
    own_target = _first_in(first, _TARGET_OF[own_input], *_TARGET_OF.values())
    return input_field or own_input, target_field or own_target


def _first_in(fields: Mapping[str, object], *names: str) -> str:
    """Return the first name that there is a field of; the first one if there is none."""
    return next((name for name in names if name in fields), names[0])


def check_template(template: str) -> None:
    """Refuse a template that could not be applied.

    Args:
        template: See `apply_template`.

    Raises:
        DataError: The template has no `{input}`, another placeholder, or a lone brace.
    """
    _split_template(template)


def apply_template(template: str, example: Example) -> str:
    r"""Put the input of an example into a template.

    Args:
        template: Text with `{input}` in it, such as `"{input}\n"`; double a brace to keep it.
        example: The row whose input to use.

    Returns:
        The template with the input in place; braces in the input stay as they are.

    Raises:
        DataError: The template has no `{input}`, another placeholder, or a lone brace.
    """
    return example.input.join(_split_template(template))


def _split_template(template: str) -> list[str]:
    """Cut a template at the places for the input."""
    rule = "the only placeholder is {input}; write {{ and }} for braces"
    try:
        texts, found = placeholders.split(template)
    except ValueError as error:
        raise DataError(f"malformed template {template!r}: {str(error).lower()}; {rule}") from error
    unknown = next((placeholder for placeholder in found if placeholder != "input"), None)
    if unknown is not None:
        raise DataError(f"unknown placeholder {{{unknown}}} in template {template!r}; {rule}")
    if not found:
        raise DataError(f"template {template!r} has no place for the input; {rule}")
    return texts


def _example(row: Row, names: tuple[str, str], target_demand: str) -> Example:
    """Check one row; `target_demand` is "always", "unless referenced" or "never"."""
    input_name, target_name = names
    text = _field(row, input_name)
    references = _references(row)
    is_needed = {"always": True, "unless referenced": not references, "never": False}[target_demand]
    if target_name in row.fields or is_needed:
        target = _field(row, target_name)
        return Example(text, target, references or (target,), row.place)
    return Example(text, references[0] if references else None, references, row.place)


def _field(row: Row, name: str) -> str:
    """Return the text of a field."""
    if name not in row.fields:
        raise _missing(row, name)
    return _text(row, f"field {name!r}", row.fields[name])


def _references(row: Row) -> tuple[str, ...]:
    """Return the right answers that a row lists."""
    if not row.may_hold_lists or _REFERENCES not in row.fields:
        return ()
    given = row.fields[_REFERENCES]
    if not isinstance(given, list) or not given:
        raise DataError(
            f"{row.place}: field {_REFERENCES!r} is {short(given)}; it must be a list of at"
            " least one text; fill it in or remove the field"
        )
    return tuple(_text(row, f"item {number} of field {_REFERENCES!r}", item) for number, item in enumerate(given, 1))


def _text(row: Row, what: str, value: object) -> str:
    """Refuse a value that is not text, or has nothing in it."""
    if not isinstance(value, str):
        raise DataError(f"{row.place}: {what} is {short(value)}; it must be text; put it in double quotes")
    if not value.strip():
        raise DataError(f"{row.place}: {what} is blank; it must hold text; fill it in or drop the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.place}: {what} has half a surrogate pair at character {error.start + 1}; it must"
            " be valid Unicode text; write the whole character"
        ) from error
    return value


def _missing(row: Row, name: str) -> DataError:
    """Say that a row lacks a field, and which fields it has."""
    return DataError(
        f"{row.place}: no field {name!r}; fields there: {listed(row.fields)}; read are input and"
        " target, text and label, or the names given as input_field and target_field"
    )
