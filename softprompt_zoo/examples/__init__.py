"""Reading pairs of input and target text from JSONL and CSV files."""

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from softprompt_zoo import placeholders
from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.fields import label, present, task_of, text
from softprompt_zoo.examples.row import Row, listed, short
from softprompt_zoo.examples.rows import read_rows

_TARGET_OF = {"input": "target", "text": "label"}
_REFERENCES = "references"
READ = "input and target, text and label, or the names given as input_field and target_field"
"""The fields that are read from a pair."""


@dataclass(frozen=True)
class Example:
    """One row of data."""

    input: str
    """The text before the answer."""
    target: str | None
    """The answer to learn; `None` only in files read with `need_target=False`."""
    references: tuple[str, ...] = ()
    """Every answer that counts as right; just the target unless the row lists others."""
    place: str = field(default="", compare=False, repr=False)
    """File and line, for messages."""
    task: str | None = field(default=None, compare=False)
    """The task that the row belongs to, if a file has several."""


def demo_data() -> Path:
    """Return the data set that ships with this package.

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
    """Read a data file, all of it or nothing.

    Args:
        path: A `.jsonl` file with one object per line, or a `.csv` file with a header row.
        input_field: The field with the input; `input` or `text` unless given.
        target_field: The field with the target; `target` or `label` unless given. A JSONL row
            may have `references`, a list of right answers; the first one is the target unless
            the row has a target.
        need_target: Whether to reject rows without a target; if False, their target is None.

    Returns:
        The rows in the order of the file, at least one.

    Raises:
        DataError: The file is missing or unreadable, or a row is not as described; the
            message names the file and the line.
    """
    path = Path(path)
    rows = list(read_rows(path))
    if not rows:
        raise DataError(f"{path}: has no rows; at least one is needed; add one or name another file")
    names = _checked_names(rows[0].fields, str(path), input_field, target_field)
    demand = _demand(target_field) if need_target else "never"
    return [_example(row, names, demand) for row in rows]


class Pairs:
    """A form of data: rows with an input and a target."""

    read = READ

    def __init__(self, first: Row, input_field: str | None, target_field: str | None) -> None:
        """Find the fields of input and target.

        Args:
            first: The first row.
            input_field: The field with the input; `input` or `text` unless given.
            target_field: The field with the target; `target` or `label` unless given.

        Raises:
            DataError: If both are the same field.
        """
        self._names = _checked_names(first.fields, first.place, input_field, target_field)
        self._demand = _demand(target_field)

    def example(self, row: Row) -> Example:
        """Read a row; an integer as target is the name of a class."""
        return _example(row, self._names, self._demand, is_label=True)


def _checked_names(
    first: Mapping[str, object], where: str, input_field: str | None, target_field: str | None
) -> tuple[str, str]:
    """Return the fields of input and target, which must differ."""
    names = _field_names(first, input_field, target_field)
    if names[0] == names[1]:
        raise DataError(
            f"input and target would both be read from field {names[0]!r} of {where}; they must"
            f" differ; fields found: {listed(first)}"
        )
    return names


def _demand(target_field: str | None) -> str:
    """Return when a row must have a target."""
    return "always" if target_field else "unless referenced"


def _field_names(first: Mapping[str, object], input_field: str | None, target_field: str | None) -> tuple[str, str]:
    """Return the fields of input and target: the given ones, or those that the first row has."""
    own_input = _first_in(first, *_TARGET_OF)
    # A file may mix the default names, such as input with label.
    own_target = _first_in(first, _TARGET_OF[own_input], *_TARGET_OF.values())
    return input_field or own_input, target_field or own_target


def is_pair(fields: Mapping[str, object]) -> bool:
    """Return whether there are an input and a target under the default names."""
    return any(name in fields for name in _TARGET_OF) and any(name in fields for name in _TARGET_OF.values())


def _first_in(fields: Mapping[str, object], *names: str) -> str:
    """Return the first name that is a field; the first name if none is."""
    return next((name for name in names if name in fields), names[0])


def check_template(template: str) -> None:
    """Reject a template that cannot be applied.

    Args:
        template: See `apply_template`.

    Raises:
        DataError: The template has no `{input}`, another placeholder, or a lone brace.
    """
    _split_template(template)


def apply_template(template: str, example: Example) -> str:
    r"""Insert the input of an example into a template.

    Args:
        template: Text with `{input}` in it, such as `"{input}\n"`; double a brace to keep it.
        example: The row whose input to use.

    Returns:
        The template with the input inserted; braces in the input are kept.

    Raises:
        DataError: The template has no `{input}`, another placeholder, or a lone brace.
    """
    return example.input.join(_split_template(template))


def _split_template(template: str) -> list[str]:
    """Split a template at the placeholders for the input."""
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


def _example(row: Row, names: tuple[str, str], target_demand: str, is_label: bool = False) -> Example:
    """Check one row; `target_demand` is "always", "unless referenced" or "never"."""
    input_name, target_name = names
    given, references = _field(row, input_name), _references(row)
    is_needed = {"always": True, "unless referenced": not references, "never": False}[target_demand]
    if target_name in row.fields or is_needed:
        target = _target(row, target_name, is_label)
        return Example(given, target, references or (target,), row.place, task_of(row))
    return Example(given, references[0] if references else None, references, row.place, task_of(row))


def _field(row: Row, name: str) -> str:
    """Return the text of a field."""
    return text(row, f"field {name!r}", present(row, name, READ))


def _target(row: Row, name: str, is_label: bool) -> str:
    return (label if is_label else text)(row, f"field {name!r}", present(row, name, READ))


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
    return tuple(text(row, f"item {number} of field {_REFERENCES!r}", item) for number, item in enumerate(given, 1))
