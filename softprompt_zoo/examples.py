"""Reading pairs of input and target text from JSONL and CSV files."""

import csv
import importlib.resources
import io
import json
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from softprompt_zoo.errors import DataError

_FIELD_PAIRS = (("input", "target"), ("text", "label"))
_REFERENCES = "references"
_SHOWN_NAMES = 10
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Example:
    """One row of data.

    Attributes:
        input: The text before the answer.
        target: The answer to learn; None only in files read with ``need_target=False``.
        references: Every answer that counts as right; the target alone unless the row has others.
    """

    input: str
    target: str | None
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """The fields of one row, and the file and line for messages about them."""

    place: str
    fields: Mapping[str, object]
    may_hold_lists: bool


def demo_data() -> Path:
    """Find the data set that comes with this package.

    Returns:
        The folder with ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
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
        path: A ``.jsonl`` file with one object per line, or a ``.csv`` file with a header row.
        input_field: The field with the input; ``input`` or ``text`` unless given.
        target_field: The field with the target; ``target`` or ``label`` unless given. A JSONL row
            may have ``references``, a list of right answers; the first is then the target unless
            the row has one of its own.
        need_target: Refuse rows without a target; if False their target is None.

    Returns:
        The rows in the order of the file, at least one.

    Raises:
        DataError: The file is missing or unreadable, or a row in it is not as described; the
            message names the file and the line.
    """
    path = Path(path)
    rows = list(_read_rows(path))
    if not rows:
        raise DataError(f"{path}: has no rows; at least one is needed; add one or name another file")
    first = rows[0].fields
    pair = next((pair for pair in _FIELD_PAIRS if pair[0] in first), _FIELD_PAIRS[0])
    if target_field is None and pair[1] not in first:
        # a file may mix the pairs, such as input with label
        pair = (pair[0], next((name for _, name in _FIELD_PAIRS if name in first), pair[1]))
    names = (input_field or pair[0], target_field or pair[1])
    if names[0] == names[1]:
        raise DataError(
            f"input and target would both be read from field {names[0]!r} of {path}; they must"
            f" differ; fields there: {_listed(first)}"
        )
    demand = "never" if not need_target else "always" if target_field else "unless referenced"
    return [_example(row, names, demand) for row in rows]


def check_template(template: str) -> None:
    """Refuse a template that could not be applied.

    Args:
        template: See ``apply_template``.

    Raises:
        DataError: The template has no ``{input}``, another placeholder, or a lone brace.
    """
    _split_template(template)


def apply_template(template: str, example: Example) -> str:
    r"""Put the input of an example into a template.

    Args:
        template: Text with ``{input}`` in it, such as ``"{input}\n"``; double a brace to keep it.
        example: The row whose input to use.

    Returns:
        The template with the input in place; braces in the input stay as they are.

    Raises:
        DataError: The template has no ``{input}``, another placeholder, or a lone brace.
    """
    parts = _split_template(template)
    return "".join(example.input if part is None else part for part in parts)


def _split_template(template: str) -> list[str | None]:
    """Cut a template into text and places for the input, which are None."""
    rule = "the only placeholder is {input}; write {{ and }} for braces"
    parts: list[str | None] = []
    try:
        for text, field, form, conversion in string.Formatter().parse(template):
            parts.append(text)
            if field is None:
                continue
            if field != "input" or form or conversion:
                shown = f"{field}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
                raise DataError(f"unknown placeholder {{{shown}}} in template {template!r}; {rule}")
            parts.append(None)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"malformed template {template!r}: {str(error).lower()}; {rule}") from error
    if None not in parts:
        raise DataError(f"template {template!r} has no place for the input; {rule}")
    return parts


def _read_rows(path: Path) -> Iterator[_Row]:
    """Choose the reader by the file's suffix."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a .jsonl or .csv file in it")
    if not path.exists():
        raise DataError(f"{path}: no such file; name a .jsonl or .csv file")
    if not path.is_file():  # a pipe that nobody writes to would be read for ever
        raise DataError(f"{path}: is a pipe or a device; name a .jsonl or .csv file on a disk")
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown suffix {path.suffix!r}; allowed are .jsonl (one object per line) and"
            " .csv (with a header row); convert or rename the file"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; allow reading it") from error
    if not content:
        raise DataError(f"{path}: is empty; at least one row is needed; was it written in full?")
    try:
        text = content.decode("utf-8-sig")  # spreadsheets put a mark before the first byte
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; only UTF-8 text"
            " is read; save the file in that encoding"
        ) from error
    return reader(path, text)


def _read_jsonl(path: Path, text: str) -> Iterator[_Row]:
    """Read one JSON object per line; blank lines are allowed."""
    lines = text.split("\n")  # splitlines() would also cut at U+2028, which JSON text may hold
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):  # its own text counts lines from this one
                said = error.msg.lower().removesuffix(" starting at")
                reason = f"column {error.colno}: {said}"
            cut = "; the file ends there and may be truncated" if number == len(lines) else ""
            raise DataError(
                f"{place}: {_cut(line.strip())} is not valid JSON ({reason}){cut}; each line must"
                " be one whole JSON object; repair or remove the line"
            ) from error
        if not isinstance(value, dict):
            raise DataError(
                f"{place}: {_short(value)} is not an object; each line must be one, such as"
                ' {"input": "...", "target": "..."}; repair or remove the line'
            )
        yield _Row(place, value, may_hold_lists=True)


def _read_csv(path: Path, text: str) -> Iterator[_Row]:
    """Read rows below a header row; blank lines are allowed."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    number = 1  # the line a row starts on; it may go on over several
    try:
        for cells in reader:
            place, number = f"{path}:{number}", reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = cells
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    raise DataError(f"{place}: columns named twice: {_listed(twice)}; rename them")
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{place}: has {len(cells)} columns; the header has {len(header)}:"
                    f" {_listed(header)}; put cells that hold a comma in double quotes"
                )
            yield _Row(place, dict(zip(header, cells, strict=True)), may_hold_lists=False)
    except csv.Error as error:
        if "field limit" in str(error):
            raise DataError(
                f"{path}:{number}: has a cell of more than {csv.field_size_limit():,} characters, which Python's reader"
                " of CSV does not take; shorten it, or write the rows as .jsonl"
            ) from error
        raise DataError(
            f"{path}:{number}: is not valid CSV ({error}); a quoted cell must end with a double"
            " quote and hold others doubled; repair the row that starts there"
        ) from error


def _example(row: _Row, names: tuple[str, str], target_demand: str) -> Example:
    """Check one row; ``target_demand`` is "always", "unless referenced" or "never"."""
    input_name, target_name = names
    if input_name not in row.fields:
        raise _missing(row, input_name)
    text = _text(row, f"field {input_name!r}", row.fields[input_name])
    references: tuple[str, ...] = ()
    if row.may_hold_lists and _REFERENCES in row.fields:
        given = row.fields[_REFERENCES]
        if not isinstance(given, list) or not given:
            raise DataError(
                f"{row.place}: field {_REFERENCES!r} is {_short(given)}; it must be a list of at"
                " least one text; fill it in or remove the field"
            )
        references = tuple(
            _text(row, f"item {number} of field {_REFERENCES!r}", item) for number, item in enumerate(given, start=1)
        )
    target: str | None = references[0] if references else None
    if target_name in row.fields:
        target = _text(row, f"field {target_name!r}", row.fields[target_name])
    elif target_demand == "always" or (target_demand == "unless referenced" and not references):
        raise _missing(row, target_name)
    return Example(text, target, references or ((target,) if target is not None else ()))


def _text(row: _Row, what: str, value: object) -> str:
    """Refuse a value that is not text, or has nothing in it."""
    if not isinstance(value, str):
        raise DataError(f"{row.place}: {what} is {_short(value)}; it must be text; put it in double quotes")
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


def _missing(row: _Row, name: str) -> DataError:
    """Say that a row lacks a field, and which fields it has."""
    return DataError(
        f"{row.place}: no field {name!r}; fields there: {_listed(row.fields)}; read are input and"
        " target, text and label, or the names given as input_field and target_field"
    )


def _listed(names: Iterable[str]) -> str:
    """Show names, but not all of very many."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:_SHOWN_NAMES] + (["..."] if len(shown) > _SHOWN_NAMES else [])) or "none"


def _short(value: object) -> str:
    """Show a value as JSON, cut to a readable length and safe to print anywhere."""
    return _cut(json.dumps(value))


def _cut(text: str) -> str:
    """Cut text to a readable length, on one line."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
