"""The options of a method, as documented in its source."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import Any


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a method."""

    name: str
    """The name that users give."""
    type: str
    """The annotation in the source."""
    default: str
    """The `repr` of the default."""
    description: list[str]
    """The lines of its docstring."""


def describe_options(config: type) -> list[Option]:
    """Read the options of a method.

    Args:
        config: The method's config class, a dataclass.

    Returns:
        The options, in the order of the fields.
    """
    documented: dict[str, list[str]] = {}
    for cls in reversed(config.__mro__):
        documented |= _field_docstrings(cls)
    return [
        Option(field.name, _type(field), _default(field), documented.get(field.name, []))
        for field in dataclasses.fields(config)
    ]


def _type(field: dataclasses.Field[Any]) -> str:
    return field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "…" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def _field_docstrings(cls: type) -> dict[str, list[str]]:
    """Return the strings below fields, which Python discards, by parsing the source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for pair in itertools.pairwise(body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text).split("\n")
    return found
