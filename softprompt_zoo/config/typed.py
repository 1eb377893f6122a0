"""Values from files or callers, checked against declared types: one problem at a time, with the field's name.

The annotations of a dataclass or `TypedDict` define the format: `str`, `bool`, `int`, `float` (finite), `None`, `Any`,
unions, `list`, `tuple` and `dict` of these, other dataclasses and `TypedDict`s, and `typing.Annotated` with `Allowed`
for bounds. Values of other types, such as a tokenizer, are not checked.
"""

import dataclasses
import functools
import json
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Set
from typing import Annotated, Any, TypeVar

from softprompt_zoo.errors import CheckpointError

T = TypeVar("T")
LONGEST_SHOWN = 60
"""Maximum number of characters of a value in a message."""
LONGEST_TEXT = 300
"""Maximum number of characters of a path or of another library's error in a message."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """A bound, for `typing.Annotated`."""

    expected: str
    """Description of what is allowed, for messages."""
    accepts: Callable[[Any], bool]
    """Returns whether a value of the annotated type is allowed."""


def integer(least: int, most: int) -> Allowed:
    """Allow integers from `least` to `most`."""
    return Allowed(f"an integer from {least} to {most}", lambda value: least <= value <= most)


class MismatchError(ValueError):
    """A value is not of the declared type."""

    def __init__(self, path: str, found: str, expected: str) -> None:
        super().__init__(f"{path or 'its content'} {found}; expected {expected}")
        self.expected = expected


def parse(text: str | bytes, where: str) -> Any:
    """Read JSON.

    Args:
        text: The JSON.
        where: Where it comes from, for the message.

    Returns:
        Its value.

    Raises:
        CheckpointError: If it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply for a file of this package; use another copy") from None
    except ValueError as error:  # includes encoding errors
        raise CheckpointError(f"{where} is truncated or not JSON ({error})") from error


def read(kind: type[T], content: Any, where: str) -> T:
    """Build a dataclass or `TypedDict` from JSON values.

    Args:
        kind: The class, whose annotations define what is allowed.
        content: JSON values.
        where: Where they come from, for the message.

    Returns:
        The instance.

    Raises:
        CheckpointError: If a field is missing, unknown, or of the wrong type; the message names it.
    """
    try:
        found: T = convert(kind, content)
    except MismatchError as error:
        raise CheckpointError(f"{where}: {error}; it is damaged or from another program; save it again") from error
    return found


def convert(kind: Any, value: Any, path: str = "") -> Any:
    """Convert a value to a declared type: lists become tuples, and objects become instances, where declared.

    Args:
        kind: An annotation.
        value: The value.
        path: Its place, such as `prompts.default.weight`.

    Raises:
        MismatchError: If it is not of that type.
    """
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return _object(kind, value, path)
    known = _KINDS.get(typing.get_origin(kind))
    if known is not None:
        return known(typing.get_args(kind), value, path)
    expected, accepts = _PLAIN.get(kind, ("", _anything))
    if not accepts(value):
        raise MismatchError(path, shown(value), expected)
    return value


def shown(value: Any) -> str:
    """Describe a wrong value, as `is 'x' (str)`, on one short line."""
    return f"is {_SHORT.repr(value)} ({type(value).__name__})"


def shortened(text: str) -> str:
    """Cut the middle of a text that is too long for a message."""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT // 2]}…{text[-LONGEST_TEXT // 2 :]}"


@functools.cache
def fields_of(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the annotations of a class by field, and the names of the required fields."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if not dataclasses.is_dataclass(kind):
        return hints, frozenset(kind.__required_keys__)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = frozenset(name for name, field in fields.items() if _has_no_default(field))
    return {name: hints[name] for name in fields}, needed


def _has_no_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _object(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise MismatchError(path, shown(value), "an object")
    hints, needed = fields_of(kind)
    _check_names(value, hints, needed, path)
    found = {name: convert(hints[name], part, _at(path, name)) for name, part in value.items()}
    return found if typing.is_typeddict(kind) else kind(**found)


def _check_names(names: Collection[Any], hints: Mapping[str, Any], needed: Set[str], path: str) -> None:
    for name in names:
        if name not in hints:
            raise MismatchError(_at(path, str(name)), "is unknown", ", ".join(hints))
    for name, hint in hints.items():
        if name in needed - {*names}:
            raise MismatchError(_at(path, name), "is missing", _expected(hint))


def _annotated(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    kind, *bounds = arguments
    found = convert(kind, value, path)
    for bound in bounds:
        if not isinstance(bound, Allowed):
            convert(bound, value, path)
        elif not bound.accepts(found):
            raise MismatchError(path, shown(value), bound.expected)
    return found


def _union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    expected = []
    for kind in arguments:
        try:
            return convert(kind, value, path)
        except MismatchError as error:
            expected.append(error.expected)
    raise MismatchError(path, shown(value), " or ".join(dict.fromkeys(expected)))


def _list(arguments: tuple[Any, ...], value: Any, path: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise MismatchError(path, shown(value), "a list")
    [kind] = arguments or (Any,)
    return [convert(kind, part, f"{path}[{number}]") for number, part in enumerate(value)]


def _tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not arguments or arguments[-1] is Ellipsis:
        return tuple(_list(arguments[:1], value, path))
    if not isinstance(value, list | tuple) or len(value) != len(arguments):
        raise MismatchError(path, shown(value), f"a list of {len(arguments)}")
    pairs = enumerate(zip(arguments, value, strict=True))
    return tuple(convert(kind, part, f"{path}[{number}]") for number, (kind, part) in pairs)


def _dict(arguments: tuple[Any, ...], value: Any, path: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise MismatchError(path, shown(value), "an object")
    key_kind, kind = arguments or (Any, Any)
    where = f"a name in {path}" if path else "a name"
    return {convert(key_kind, key, where): convert(kind, part, _at(path, key)) for key, part in value.items()}


def _at(path: str, name: Any) -> str:
    short = name if isinstance(name, str) and name.isidentifier() and len(name) <= LONGEST_SHOWN else _SHORT.repr(name)
    return f"{path}.{short}" if path else short


def _expected(kind: Any) -> str:
    """Return what a missing field should have been."""
    try:
        convert(kind, _Nothing())
    except MismatchError as error:
        return error.expected
    return "a value"


class _Nothing:
    """A value of no type."""


def _anything(value: Any) -> bool:
    return True


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -sys.float_info.max <= value <= sys.float_info.max  # neither NaN nor infinity


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a finite number", _is_number),
    str: ("text", lambda value: isinstance(value, str)),
    types.NoneType: ("None", lambda value: value is None),
}
_KINDS: dict[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    Annotated: _annotated,
    typing.Union: _union,
    types.UnionType: _union,
    list: _list,
    tuple: _tuple,
    dict: _dict,
    Mapping: _dict,
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = LONGEST_SHOWN
_SHORT.maxlevel = 2
