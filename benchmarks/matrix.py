"""Test every method on every tiny model for every promise and operation, in softprompt_zoo and in PEFT.

Run from the repository root; run the command again to resume it::

    python benchmarks/matrix.py

Writes `table.md` and `matrix.html` (named after the folder of the results), with a reason for each cell that is not
right. See benchmarks/README.md.
"""

import dataclasses
import datetime
import functools
import html
import inspect
import itertools
import signal
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt_zoo as zoo
from common import markdown, versions, write
from peft_subject import CONFIGS, PeftSubject
from runner import Experiment, Result, Runner, command
from softprompt_zoo.testing import TINY_MODELS, conformance_suite, operation_suite, tiny_model
from softprompt_zoo.testing.models import MORE_MODELS
from softprompt_zoo.testing.subject import Subject

LIBRARIES: dict[str, type[Subject]] = {"softprompt_zoo": Subject, "PEFT": PeftSubject}
RIGHT, WRONG, ERROR, REFUSED, UNDEFINED = "right", "wrong", "error", "refused", "not defined"
"""The check passed; it found a different result; another exception was raised; `UnsupportedError` was raised before
anything was changed; or the operation does not exist for this model or method (an encoder does not generate)."""
COLORS = {RIGHT: "#2e7d32", WRONG: "#c62828", ERROR: "#ef6c00", REFUSED: "#90a4ae", UNDEFINED: "#eceff1"}
SUITES: dict[str, Callable[[str], Any]] = {"promise": conformance_suite, "operation": operation_suite}
"""For each group of cells, as it is called in the names of its tests, the function that builds its suite."""
OURS = ("promise_05", "promise_08", "promise_09")
"""Checks without an equivalent in PEFT: initial values of real tokens, exchange with itself, merging."""
AGAIN = "again"
"""Key of a result for the day on which only this library's cells were measured again."""
COMPILED = "compiled"
"""Prefix of the operations that compile the model."""
SECONDS = 120
"""Time limit of a cell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    methods: str = ",".join(CONFIGS)
    """Methods, separated by commas."""
    part: int = 1
    """Run only every n-th cell, starting with the first."""
    compiled: str = "llama,gpt2,gemma3,bloom,bert,t5"
    """Models whose cells are also compiled, separated by commas; one cell takes five seconds, all would take hours."""
    threads: int = 1


Cell = tuple[str, str]
"""Status and reason."""


def operations(group: str = "") -> dict[str, tuple[str, dict[str, Any]]]:
    """List the checks of both suites, or of one group.

    Args:
        group: A key of `SUITES`; both by default.

    Returns:
        For each title, the suite's test and the arguments of its parametrization.
    """
    found = {}
    for one, make_suite in SUITES.items():
        for name, test in inspect.getmembers(make_suite("prompt_tuning"), inspect.isfunction):
            if not name.startswith(f"test_{one}_") or group not in ("", one):
                continue
            title = name.removeprefix(f"test_{one}_")
            number, _, rest = title.partition("_")
            title = f"{int(number)}: {rest}" if number.isdigit() else title
            marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
            axes = [[{mark.args[0]: value} for value in mark.args[1]] for mark in marks]
            for choice in itertools.product(*axes):
                chosen: dict[str, Any] = {key: value for part in choice for key, value in part.items()}
                more = "".join(f", {key.removeprefix('use_')} {value}".lower() for key, value in chosen.items())
                found[f"{title.replace('_', ' ')}{more}"] = (name, chosen)
    return found


def run_cell(library: str, architecture: str, method: str, operation: str) -> Cell:
    """Run a check with its own time limit, and turn its outcome into a cell."""
    name, chosen = operations()[operation]
    suite = SUITES[name.split("_")[1]](method)()
    suite.subject_type, suite.shows_refusals = LIBRARIES[library], True
    if library == "PEFT" and any(part in name for part in OURS):
        return UNDEFINED, "PEFT has no such operation"
    if library == "PEFT" and method not in CONFIGS:
        return UNDEFINED, "PEFT has no such method"
    with tempfile.TemporaryDirectory() as folder, _TimeLimit(SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        makers: dict[str, Callable[[], Any]] = {
            "subject": lambda: suite.subject_type.prompted(architecture, method, suite.options),
            "base": lambda: suite.subject_type(architecture, tiny_model(architecture)),
            "architecture": lambda: architecture,
            "tmp_path": lambda: Path(folder),
            **{key: lambda value=value: value for key, value in chosen.items()},  # type: ignore[misc]
        }
        test = getattr(suite, name)
        try:
            test(**{argument: makers[argument]() for argument in inspect.signature(test).parameters})
        except zoo.UnsupportedError as error:
            return REFUSED, _reason(error)
        except pytest.skip.Exception as skipped:
            return UNDEFINED, _reason(skipped)
        except AssertionError as error:
            return WRONG, _reason(error)
        except Exception as error:
            return ERROR, f"{type(error).__name__}: {_reason(error)}"
    return RIGHT, ""


class _TimeLimit:
    """A context that raises `TimeoutError` if its block takes too long."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        def stop(*_: Any) -> None:
            raise TimeoutError(f"takes more than {self.seconds} s")

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(self.seconds)

    def __exit__(self, *_: Any) -> None:
        signal.alarm(0)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else "")[:240]


def experiments(settings: Settings) -> list[Experiment]:
    """List the experiments, two for each model: its promises, and its operations."""
    methods = settings.methods.split(",")

    def is_compiled(architecture: str) -> bool:
        return architecture in settings.compiled.split(",")

    def measure(architecture: str, group: str) -> Callable[[int], Result]:
        def cells(seed: int) -> Result:
            found: Result = {"date": datetime.datetime.now(tz=datetime.UTC).date().isoformat()}
            for method, library in itertools.product(methods, LIBRARIES):
                began = time.perf_counter()
                for number, operation in enumerate(operations(group)):
                    if operation.startswith(COMPILED) and not is_compiled(architecture):
                        continue
                    if (list(models()).index(architecture) + number + methods.index(method)) % settings.part == 0:
                        key = "|".join((library, method, operation))
                        found[key] = run_cell(library, architecture, method, operation)
                print(f"  {architecture}, {method}, {library}: {time.perf_counter() - began:.0f} s", flush=True)
            return found

        return cells

    def options(architecture: str, group: str) -> dict[str, Any]:
        more = {"compiled": True} if group == "operation" and is_compiled(architecture) else {}
        return {"methods": methods, "part": settings.part, **more}

    return [
        Experiment(
            name=architecture if group == "promise" else f"{architecture}-{group}s",
            methods=tuple(methods),
            measure=measure(architecture, group),
            options=functools.partial(options, architecture, group),
        )
        for architecture in models()
        for group in SUITES
    ]


def models() -> dict[str, Any]:
    """List all tiny models."""
    return {**TINY_MODELS, **MORE_MODELS}


# Tables


def cells(runner: Runner) -> Iterator[tuple[str, str, str, str, Cell]]:
    """Iterate over the available results: architecture, library, method, operation and cell."""
    for name in runner.experiments:
        for key, cell in (runner.result(name) or {}).items():
            if "|" in key:
                library, method, operation = key.split("|")
                yield name.removesuffix("-operations"), library, method, operation, (cell[0], cell[1])


def table(runner: Runner, settings: Settings) -> str:
    """Return the counts, and our cells that are not right, in Markdown."""
    found = list(cells(runner))
    done = [name for name in runner.experiments if runner.result(name)]
    ours = {(a, m, o): cell[0] for a, of, m, o, cell in found if of == "softprompt_zoo"}
    theirs = [(a, m, o, cell[0]) for a, of, m, o, cell in found if of == "PEFT"]
    refused_here = sum(status == RIGHT and ours[a, m, o] == REFUSED for a, m, o, status in theirs)
    # Cells that we refuse are not compared: the method may not be defined there.
    both = [row for row in found if row[1] == "softprompt_zoo" or ours[row[0], row[2], row[3]] != REFUSED]
    by_method = _compared(both, dict.fromkeys(method for _, _, method, _, _ in found), 2)
    refusals = Counter(
        (method, cell[1]) for _, of, method, _, cell in found if of == "softprompt_zoo" and cell[0] == REFUSED
    )
    where: dict[tuple[str, str], list[str]] = {}
    for architecture, of, method, _, cell in found:
        if (
            of == "softprompt_zoo"
            and cell[0] == REFUSED
            and architecture not in where.setdefault((method, cell[1]), [])
        ):
            where[method, cell[1]].append(architecture)
    wrong = [
        (a, m, o, f"{c[0]}: {c[1]}") for a, of, m, o, c in found if of == "softprompt_zoo" and c[0] in (WRONG, ERROR)
    ]
    results = [runner.result(name) or {} for name in done]
    dates = sorted({result[key] for result in results for key in ("date", AGAIN) if key in result})
    parts = [
        f"{len({row[0] for row in found})} models of {len(models())}, {len(found)} cells; {_versions()}; "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else 'not run'}.",
        markdown(("library", *COLORS), _totals(found)),
        "Right cells among those that are defined and that softprompt_zoo does not refuse, the same for both; in "
        f"brackets how many it refuses. PEFT is right in {refused_here} of these.",
        markdown(("method", *LIBRARIES), by_method),
        *(markdown((group, *LIBRARIES), _compared(both, operations(group), 3)) for group in SUITES),
        f"Compiled on {settings.compiled.replace(',', ', ')} only, since a cell takes seconds.",
    ]
    if wrong:
        parts += ["Ours that are not right:", markdown(("model", "method", "operation", "reason"), wrong)]
    if refusals:
        rows = [(method, ", ".join(where[method, reason]), reason) for method, reason in refusals]
        parts += ["What softprompt_zoo refuses:", markdown(("method", "models", "reason"), rows)]
    return "\n\n".join(parts) + "\n"


def _totals(found: list[tuple[str, str, str, str, Cell]]) -> list[tuple[str, ...]]:
    """Count each library's cells of each status."""
    counts = {library: Counter(cell[0] for _, of, _, _, cell in found if of == library) for library in LIBRARIES}
    return [(library, *(str(count[status]) for status in COLORS)) for library, count in counts.items()]


def _compared(found: list[tuple[str, str, str, str, Cell]], names: Iterable[str], place: int) -> list[tuple[str, ...]]:
    """Count the cells by one field: a line for each name, a column for each library."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in found:
        counts[str(row[place]), row[1]][row[4][0]] += 1
    return [(name, *(_share(counts[name, library]) for library in LIBRARIES)) for name in names]


def _share(count: Counter[str]) -> str:
    tried = count[RIGHT] + count[WRONG] + count[ERROR]
    refused = f" ({count[REFUSED]})" if count[REFUSED] else ""
    return f"{count[RIGHT]} of {tried}{refused}" if tried else f"-{refused}"


def _versions() -> str:
    names = ("softprompt-zoo", "peft", "transformers", "torch")
    return ", ".join(f"{name} {version}" for name, version in versions(*names).items())


STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #212121; }
table { border-collapse: collapse; margin: 0 0 1em; display: block; max-width: 100%; overflow-x: auto; }
th { font-weight: 500; text-align: left; padding: 2px 8px; }
td { padding: 0; }
td span { display: block; width: 18px; height: 14px; border: 1px solid #fff; }
summary { cursor: pointer; }
li { margin: 2px 0; overflow-wrap: anywhere; }
"""


def page(runner: Runner) -> str:
    """Return the page: a colored square for each cell, and the reasons below each model."""
    titles = list(operations())
    legend = " ".join(
        f'<span style="background:{color}; padding: 2px 8px">{status}</span>' for status, color in COLORS.items()
    )
    totals = [["library", *COLORS], *_totals(list(cells(runner)))]
    counts = "".join("<tr>" + "".join(f"<th>{value}" for value in line) for line in totals)
    colors = "".join(f".{status.split()[0]} {{ background: {color}; }}\n" for status, color in COLORS.items())
    parts = [
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        "<title>Every method on every model</title>",
        f"<style>{STYLE}{colors}</style><h1>Every method on every model</h1><p>{html.escape(_versions())}</p>",
        f"<table>{counts}</table><p>{legend}</p>",
        "<ol>" + "".join(f"<li>{html.escape(title)}" for title in titles) + "</ol>",
    ]
    by_model: dict[str, dict[tuple[str, str, str], Cell]] = {}
    for architecture, library, method, operation, cell in cells(runner):
        by_model.setdefault(architecture, {})[library, method, operation] = cell
    for architecture, found in by_model.items():
        parts.append(f"<h2>{architecture}</h2><table>")
        numbers = "".join(f"<th>{number + 1}" for number in range(len(titles)))
        parts.append(f"<tr><th>method<th>library{numbers}")
        reasons: dict[str, list[str]] = {}
        for method, library in dict.fromkeys((method, library) for library, method, _ in found):
            squares = []
            for number, operation in enumerate(titles):
                status, reason = found.get((library, method, operation), (UNDEFINED, "not run"))
                text = f"{number + 1}. {operation}: {status}. {reason}"
                squares.append(
                    f'<td><span title="{html.escape(text[:100], quote=True)}" class={status.split()[0]}></span>'
                )
                if status in (WRONG, ERROR, REFUSED):
                    reasons.setdefault(f"{library}, {html.escape(text)}", []).append(method)
            parts.append(f"<tr><th>{method}<th>{library}{''.join(squares)}")
        lines = "".join(f"<li>{reason} ({', '.join(methods)})" for reason, methods in reasons.items())
        parts.append(f"</table><details><summary>{len(reasons)} reasons</summary><ul>{lines}</ul></details>")
    return "\n".join(parts) + "</html>\n"


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the tables."""
    torch.set_num_threads(settings.threads)
    shared = {"versions": versions("softprompt-zoo", "peft", "transformers", "torch")}
    runner = Runner(folder, shared, experiments(settings))

    def write_all() -> None:
        write(folder / "table.md", table(runner, settings))
        write(folder / f"{folder.name}.html", page(runner))

    return runner, write_all


main = command((__doc__ or "").splitlines()[0], Settings, "matrix", make)

if __name__ == "__main__":
    main()
