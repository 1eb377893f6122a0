"""Checks of the fields of a row, with messages that say what is wrong."""

import difflib

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples.row import Row, listed, short


def present(row: Row, name: str, read: str) -> object:
    """Return a field.

    Args:
        row: The row.
        name: The field.
        read: The fields that are read, for the message.

    Returns:
        Its value.

    Raises:
        DataError: If the row has no such field.
    """
    if name not in row.fields:
        near = difflib.get_close_matches(name, row.fields, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{row.place}: no field {name!r}{meant}; fields found: {listed(row.fields)}; expected {read}")
    return row.fields[name]


def text(row: Row, what: str, value: object) -> str:
    """Check that a value is text and not blank.

    Args:
        row: The row.
        what: Description of the value, for the message.
        value: The value.

    Returns:
        The text.

    Raises:
        DataError: If it is not text, blank, or not valid Unicode.
    """
    if not isinstance(value, str):
        raise DataError(f"{row.place}: {what} is {short(value)}; it must be text; put it in double quotes")
    if not value.strip():
        raise DataError(f"{row.place}: {what} is blank; it must contain text; fill it in or remove the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.place}: {what} has half a surrogate pair at character {error.start + 1}; it must"
            " be valid Unicode text; write the whole character"
        ) from error
    return value


def label(row: Row, what: str, value: object) -> str:
    """Return the name of a class: text, or an integer, since classes are often numbered."""
    return str(value) if type(value) in (int, bool) else text(row, what, value)


def items(row: Row, name: str, value: object) -> list[object]:
    """Check that a value is a list with at least one item.

    Args:
        row: The row.
        name: The field.
        value: The value.

    Returns:
        The list.

    Raises:
        DataError: If it is not a list, or empty.
    """
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{row.place}: field {name!r} is {short(value)}; it must be a list of at least one item; fill it in or "
            "drop the row"
        )
    return value


def task_of(row: Row) -> str | None:
    """Return the task that a row names; `None` if the field has neither text nor an integer."""
    value = row.fields.get("task")
    return str(value) if type(value) in (str, int) and str(value).strip() else None
