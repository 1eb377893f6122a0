"""Measure the code: the length of its files, the complexity of its functions, the layers of its imports, and more.

Run from the repository root; ``--before`` adds the numbers of another checkout::

    python benchmarks/house.py
    python benchmarks/house.py --before OTHER_CHECKOUT

Exits with 1 if a number of this checkout is not within its limit. `tests/test_architecture.py` checks the same limits.
"""

import argparse
import ast
import dataclasses
import math
import re
import statistics
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from radon.complexity import cc_visit
from radon.visitors import Function
from rich.console import Console
from rich.table import Table

PACKAGE = "softprompt_zoo"
TOKENS = r"(InputTokens|TaskTokens|LayerTokens|SiteTokens|ScoredTokens|GatedTokens|PlainTokens|VirtualTokens)"
KINDS = re.compile(
    rf"isinstance\([^()]+, (\w+ \| |\()?{TOKENS}|(embeddings|keys|values|tokens)\.(ndim|dim\(\))"
    r"|gates is (not )?None|family (==|!=|in|not in) |\.(through_cache|takes_cache|is_carried|takes_real_positions)\b"
    r"|\.problem is (not )?None"
)
"""Code that asks for a kind of tokens, a way to reach a stack, or a family, where a type's method could answer."""
KNOWS_KINDS = ("tokens", "sites/reach", "backbone/families", "testing")
"""Modules that may ask: those of the types themselves, and `testing`, whose checks look at what they are given."""
MOST_COMPLEX = 10
SUPPRESSION = re.compile(r"# (type: ignore|noqa|pragma|fmt: (skip|off))")


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of the package."""

    path: Path
    text: str

    @property
    def num_lines(self) -> int:
        """Number of lines."""
        return len(self.text.splitlines())


@dataclasses.dataclass(frozen=True)
class House:
    """A checkout of the repository."""

    root: Path

    @property
    def sources(self) -> list[Source]:
        """All files of the package."""
        return [Source(path, path.read_text("utf-8")) for path in sorted((self.root / PACKAGE).rglob("*.py"))]

    @property
    def num_lines(self) -> int:
        """Number of lines in the package."""
        return sum(source.num_lines for source in self.sources)

    def per_thousand(self, pattern: str | re.Pattern[str]) -> float:
        """Return the number of matches of a pattern per 1,000 lines."""
        found = sum(len(re.findall(pattern, source.text)) for source in self.sources)
        return round(1000 * found / self.num_lines, 1)


def files_at_the_root(house: House) -> int:
    """Count the modules of the package that are not in a folder."""
    return len(list((house.root / PACKAGE).glob("*.py")))


def layers(house: House) -> int:
    """Count the layers of the import contract."""
    settings = tomllib.loads((house.root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    return len(next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"))


def circles(house: House) -> int:
    """Count the groups of modules that import each other; imports for types count, those in functions do not."""
    modules = _modules(house)
    graph = {name: set(_imports(modules, name)) for name in modules}
    reached = {name: _reachable(graph, name) for name in graph}
    return len({frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]})


def complexities(house: House) -> list[tuple[int, str]]:
    """Return the cyclomatic complexity and the place of every function, the largest last; inline conditions count."""
    found = []
    for source in house.sources:
        place = source.path.relative_to(house.root).as_posix()
        blocks = [block for block in cc_visit(source.text) if isinstance(block, Function)]
        found += [(block.complexity, f"{place}:{block.lineno} {block.name}") for block in blocks]
    return sorted(found)


def largest_complexity(house: House) -> int:
    """Return the largest complexity of a function."""
    return complexities(house)[-1][0]


def common_complexity(house: House) -> int:
    """Return the complexity that nine in ten functions do not exceed."""
    found = complexities(house)
    return found[math.ceil(0.9 * len(found)) - 1][0]


def longest_file(house: House) -> int:
    """Return the number of lines of the longest file."""
    return max(source.num_lines for source in house.sources)


def median_file(house: House) -> float:
    """Return the number of lines of the median file; `__init__.py` files are left out."""
    return statistics.median(source.num_lines for source in house.sources if source.path.name != "__init__.py")


def longest_page(house: House) -> int:
    """Return the number of lines of the longest page of a method, including those of the plugin packages."""
    pages = [*(house.root / PACKAGE / "methods").glob("*.py"), *(house.root / "plugins").glob("*/softprompt_zoo_*.py")]
    return max(len(page.read_text("utf-8").splitlines()) for page in pages)


def lookups_by_name(house: House) -> float:
    """Return the number of calls of `getattr` and `hasattr` per 1,000 lines."""
    return house.per_thousand(r"\b(?:getattr|hasattr)\(")


def suppressions(house: House) -> float:
    """Return the number of comments per 1,000 lines that silence the type checker, ruff or coverage."""
    return house.per_thousand(SUPPRESSION)


def errors_with_their_value(house: House) -> float:
    """Return the percentage of raised messages that contain a value."""
    raised = [node.exc for source in house.sources for node in ast.walk(ast.parse(source.text)) if _is_message(node)]
    return round(100 * sum(map(_has_value, raised)) / len(raised), 1)


def questions_of_kind(house: House) -> int:
    """Count the lines, outside the types themselves, that ask for a kind of tokens, a way in or a family."""
    return len(list(_questions(house)))


@dataclasses.dataclass(frozen=True)
class Number:
    """A measure of a checkout and its limit."""

    measure: Callable[[House], float]
    limit: float
    is_least: bool = False

    def is_kept(self, value: float) -> bool:
        """Return whether a value is within the limit."""
        return value >= self.limit if self.is_least else value <= self.limit


NUMBERS = {
    "files at the root": Number(files_at_the_root, 10),
    "layers of imports": Number(layers, 14),
    "circles of imports, for types included": Number(circles, 0),
    "lines of the longest file": Number(longest_file, 300),
    "lines of the median file": Number(median_file, 130),
    "lines of the longest page of a method": Number(longest_page, 250),
    "largest complexity": Number(largest_complexity, MOST_COMPLEX),
    "complexity of nine in ten functions": Number(common_complexity, 5),
    "getattr and hasattr per 1,000 lines": Number(lookups_by_name, 3),
    "suppressions per 1,000 lines": Number(suppressions, 2),
    "errors that say the value, percent": Number(errors_with_their_value, 95, is_least=True),
    "questions of kind": Number(questions_of_kind, 25),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout to measure")
    parser.add_argument("--before", type=Path, help="another checkout, shown next to it")
    parser.add_argument("--lines", action="store_true", help="print the questions of kind and complex functions, too")
    settings = parser.parse_args(arguments)
    houses = [House(root) for root in (settings.before, settings.root) if root is not None]
    table = Table("", *(["before"] if settings.before else []), "now", "allowed")
    is_kept = True
    for name, number in NUMBERS.items():
        values = [number.measure(house) for house in houses]
        is_kept &= number.is_kept(values[-1])
        mark = "" if number.is_kept(values[-1]) else " *"
        bound = f"at {'least' if number.is_least else 'most'} {number.limit:g}"
        table.add_row(name, *(f"{value:g}" for value in values[:-1]), f"{values[-1]:g}{mark}", bound)
    console = Console(width=100)
    console.print(table)
    if settings.lines:
        complex_ones = [f"{where}: {value}" for value, where in complexities(houses[-1]) if value > MOST_COMPLEX]
        for line in (*_questions(houses[-1]), *complex_ones):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 0 if is_kept else 1


def _questions(house: House) -> Iterator[str]:
    for source in house.sources:
        name = source.path.relative_to(house.root / PACKAGE).as_posix()
        if name.startswith(KNOWS_KINDS):
            continue
        for number, line in enumerate(source.text.splitlines(), 1):
            if KINDS.search(line):
                yield f"{name}:{number} {line.strip()}"


def _modules(house: House) -> dict[str, Source]:
    found = {}
    for source in house.sources:
        parts = source.path.relative_to(house.root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = source
    return found


def _imports(modules: Mapping[str, Source], module: str) -> Iterator[str]:
    for node in _outside_functions(ast.parse(modules[module].text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found = full if full in modules else node.module
                if found not in (module, PACKAGE) and module != PACKAGE:
                    yield str(found)


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _outside_functions(node)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    pending = list(graph[start])
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += graph.get(name, ())
    return found


def _is_message(node: ast.AST) -> bool:
    """Return whether a node raises an exception with arguments, such as a message."""
    return isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and bool(node.exc.args)


def _has_value(raised: ast.expr | None) -> bool:
    """Return whether a message contains a value or is built elsewhere."""
    parts = list(ast.walk(raised.args[0])) if isinstance(raised, ast.Call) else []
    return any(isinstance(part, ast.FormattedValue | ast.Name | ast.Call) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
