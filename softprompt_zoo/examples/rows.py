"""The rows of files, read one at a time, each with its place for messages."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.row import Row, cut, listed, short
from softprompt_zoo.examples.tables import read_parquet


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a file, one at a time; its suffix determines the format.

    Args:
        path: A `.jsonl`, `.csv` or `.parquet` file.

    Returns:
        The rows, in the order of the file.

    Raises:
        DataError: If the file or a row of it cannot be read.
        MissingPackageError: If the package that reads Parquet is not installed.
    """
    _check_is_file(path)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown suffix {path.suffix!r}; allowed are .jsonl (one object per line), .csv (with a header"
            " row) and .parquet; convert or rename the file"
        )
    _check_is_readable(path)
    return reader(path)


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder; name a .jsonl, .csv or .parquet file in it, or a folder that"
            " Dataset.save_to_disk wrote"
        )
    if not path.exists():
        raise DataError(f"{path}: no such file; name a .jsonl, .csv or .parquet file")
    if not path.is_file():  # reading a pipe without a writer would block forever
        raise DataError(f"{path}: is a pipe or a device; name a .jsonl or .csv file on a disk")


def _check_is_readable(path: Path) -> None:
    """Check that a file can be read and is not empty."""
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    if is_empty:
        raise DataError(f"{path}: is empty; at least one row is needed; was it written in full?")


def _read_lines(path: Path) -> Iterator[str]:
    """Read the lines of a UTF-8 file; lines end at a line feed, which JSON strings never contain."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                # spreadsheets write a byte-order mark
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: byte 0x{error.object[error.start]:02x} is not UTF-8; only UTF-8 text"
                    " can be read; save the file in that encoding"
                ) from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    """Read one JSON object per line; blank lines are allowed."""
    for number, line in enumerate(_read_lines(path), start=1):  # splitlines() would also split at U+2028
        if not line.strip():
            continue
        place = f"{path}:{number}"
        value = _parse(line, place, is_last=not line.endswith("\n"))
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
        truncated = "; the file ends there and may be truncated" if is_last else ""
        raise DataError(
            f"{place}: {cut(line.strip())} is not valid JSON ({_reason(error)}){truncated}; each line must"
            " be one whole JSON object; repair or remove the line"
        ) from error


def _reason(error: Exception) -> str:
    """Return why a line is not JSON; the decoder's own message would count this line as line 1."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"column {error.colno}: {error.msg.lower().removesuffix(' starting at')}"


def _read_csv(path: Path) -> Iterator[Row]:
    """Read the rows below a header row; blank lines are allowed."""
    lines = _csv_lines(path)
    place, header = next(lines, ("", []))
    _check_header(place, header)
    for place, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{place}: has {len(cells)} columns; the header has {len(header)}:"
                f" {listed(header)}; put cells that contain a comma in double quotes"
            )
        yield Row(place, dict(zip(header, cells, strict=True)), may_hold_lists=False)


def _csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the cells of each line that is not blank, with its place."""
    reader = csv.reader(_with_old_line_ends(_read_lines(path)), strict=True)
    number = 1  # the line where a row starts; it may span several
    try:
        for cells in reader:
            place, number = f"{path}:{number}", reader.line_num + 1
            if cells:
                yield place, cells
    except csv.Error as error:
        if "field limit" in str(error):
            raise DataError(
                f"{path}:{number}: has a cell of more than {csv.field_size_limit():,} characters, the limit of Python's"
                " CSV reader; shorten it, or write the rows as .jsonl"
            ) from error
        raise DataError(
            f"{path}:{number}: is not valid CSV ({error}); a quoted cell must end with a double"
            " quote, and quotes inside it must be doubled; repair the row that starts there"
        ) from error


def _with_old_line_ends(lines: Iterable[str]) -> Iterator[str]:
    """Split lines at lone carriage returns, too, as the CSV reader expects."""
    for line in lines:
        yield from filter(None, re.split(r"(?<=\r)(?!\n)", line))


def _check_header(place: str, header: list[str]) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{place}: columns named twice: {listed(twice)}; rename them")
