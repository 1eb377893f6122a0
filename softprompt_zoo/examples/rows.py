"""The rows of JSONL and CSV files, each with its place for messages."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import DataError

_SHOWN_NAMES = 10
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Row:
    """The fields of one row, and the file and line for messages about them."""

    place: str
    fields: Mapping[str, object]
    may_hold_lists: bool


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a file; its suffix says how.

    Args:
        path: A `.jsonl` or `.csv` file.

    Returns:
        The rows, in the order of the file.

    Raises:
        DataError: If the file or a row of it cannot be read.
    """
    _check_is_file(path)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown suffix {path.suffix!r}; allowed are .jsonl (one object per line) and"
            " .csv (with a header row); convert or rename the file"
        )
    return reader(path, _read_text(path))


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a .jsonl or .csv file in it")
    if not path.exists():
        raise DataError(f"{path}: no such file; name a .jsonl or .csv file")
    if not path.is_file():  # a pipe that nobody writes to would be read for ever
        raise DataError(f"{path}: is a pipe or a device; name a .jsonl or .csv file on a disk")


def _read_text(path: Path) -> str:
    """Read a file that has something in it, in UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; allow reading it") from error
    if not content:
        raise DataError(f"{path}: is empty; at least one row is needed; was it written in full?")
    try:
        return content.decode("utf-8-sig")  # spreadsheets put a mark before the first byte
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; only UTF-8 text"
            " is read; save the file in that encoding"
        ) from error


def _read_jsonl(path: Path, text: str) -> Iterator[Row]:
    """Read one JSON object per line; blank lines are allowed."""
    lines = text.split("\n")  # splitlines() would also cut at U+2028, which JSON text may hold
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        value = _parse(line, place, is_last=number == len(lines))
        if not isinstance(value, dict):
            raise DataError(
                f"{place}: {short(value)} is not an object; each line must be one, such as"
                ' {"input": "...", "target": "..."}; repair or remove the line'
            )
        yield Row(place, value, may_hold_lists=True)


def _parse(line: str, place: str, is_last: bool) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        cut = "; the file ends there and may be truncated" if is_last else ""
        raise DataError(
            f"{place}: {_cut(line.strip())} is not valid JSON ({_reason(error)}){cut}; each line must"
            " be one whole JSON object; repair or remove the line"
        ) from error


def _reason(error: Exception) -> str:
    """Return why a line is not JSON; a decoder's own text would count lines from this one."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"column {error.colno}: {error.msg.lower().removesuffix(' starting at')}"


def _read_csv(path: Path, text: str) -> Iterator[Row]:
    """Read rows below a header row; blank lines are allowed."""
    lines = _csv_lines(path, text)
    place, header = next(lines, ("", []))
    _check_header(place, header)
    for place, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{place}: has {len(cells)} columns; the header has {len(header)}:"
                f" {listed(header)}; put cells that hold a comma in double quotes"
            )
        yield Row(place, dict(zip(header, cells, strict=True)), may_hold_lists=False)


def _csv_lines(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the cells of each line that is not blank, with its place."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1  # the line a row starts on; it may go on over several
    try:
        for cells in reader:
            place, number = f"{path}:{number}", reader.line_num + 1
            if cells:
                yield place, cells
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


def listed(names: Iterable[str]) -> str:
    """Show names, but not all of very many."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:_SHOWN_NAMES] + (["..."] if len(shown) > _SHOWN_NAMES else [])) or "none"


def short(value: object) -> str:
    """Show a value as JSON, cut to a readable length and safe to print anywhere."""
    return _cut(json.dumps(value))


def _cut(text: str) -> str:
    """Cut text to a readable length, on one line."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _check_header(place: str, header: list[str]) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{place}: columns named twice: {listed(twice)}; rename them")
