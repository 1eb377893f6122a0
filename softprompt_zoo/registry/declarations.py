"""Reading what a plugin declares from the source text of its module, without running its code."""

import ast
import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Declarations:
    """The declarations in a module, or in the class in it that is the plugin."""

    summary: str = ""
    """First line of the docstring."""
    aliases: tuple[str, ...] = ()
    """The literal `ALIASES`."""
    peft_types: tuple[str, ...] = ()
    """The literal `PEFT_TYPES`."""


def read_declarations(entry: metadata.EntryPoint) -> Declarations:
    """Read what the module of an entry point declares.

    Args:
        entry: The entry point.

    Returns:
        Whatever could be read. Third-party files may contain anything; problems are reported when they are loaded.
    """
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        path = _source_path(entry.module)
        tree = ast.parse(path.read_bytes() if path else b"")
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        owner = classes.get(entry.attr, tree)
        summary = (ast.get_docstring(owner) or "").split("\n")[0]
        values = dict(_assigned([*tree.body, *owner.body]))
        return Declarations(summary, _literal(values.get("ALIASES")), _literal(values.get("PEFT_TYPES")))
    return Declarations()


def _assigned(nodes: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Yield names and the values assigned to them."""
    for node in nodes:
        match node:
            case ast.Assign(targets=targets, value=value):
                yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value


def _literal(value: ast.expr | None) -> tuple[str, ...]:
    """Return the strings of a literal tuple or list; an empty tuple for anything else."""
    with contextlib.suppress(ValueError):
        found = () if value is None else ast.literal_eval(value)
        return tuple(map(str, found)) if isinstance(found, tuple | list) else ()
    return ()


def _source_path(module: str) -> Path | None:
    """Find a module's file; `importlib.util.find_spec` would import its parent packages."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for name in rest:
        if spec is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(
            f"{spec.name}.{name}", list(spec.submodule_search_locations or ())
        )
    path = Path((spec and spec.origin) or "")
    return path if path.suffix == ".py" else None
