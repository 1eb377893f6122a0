"""Check a method against the promises in one line, in a test or interactively, with a readable summary."""

import collections
import contextlib
import dataclasses
import io
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tqdm.auto import tqdm
from tqdm.notebook import tqdm_notebook

from softprompt_zoo.errors import PluginError
from softprompt_zoo.method import get_method
from softprompt_zoo.testing.conformance import conformance_suite
from softprompt_zoo.testing.models import TINY_MODELS

PASSED, FAILED, REFUSED = "passed", "failed", "skipped"
OPTIONS = ("-q", "--capture=no", "--import-mode=importlib", "--disable-plugin-autoload", "-p", "no:cacheprovider")
"""pytest's options: nothing from the user's own session, no files left."""
SUITES: dict[str, Any] = {}
"""The suites by name of the folder, which the file of a run is named after."""
FILE = "from pathlib import Path\nfrom softprompt_zoo.testing.checked import SUITES\n\nTestMethod = SUITES[{!r}]\n"


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of a method on one model."""

    name: str
    """The promise, and which part of it."""
    model: str
    """Architecture of the tiny model, and anything else that the check varies."""
    outcome: str
    """`"passed"`, `"failed"`, or `"skipped"` if it does not apply to the method or the model."""
    reason: str = ""
    """Why it failed or was skipped."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of `check_method`."""

    method: str
    """Its name."""
    checks: tuple[Check, ...]
    """All checks, in order."""

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == FAILED)

    @property
    def is_kept(self) -> bool:
        """Whether none failed, and not all were skipped."""
        return not self.failed and any(check.outcome == PASSED for check in self.checks)

    def __str__(self) -> str:
        lines = [f"{self.method}: {_counted(self.checks)}"]
        for name in dict.fromkeys(check.name for check in self.checks):
            lines.append(_line(name, [check for check in self.checks if check.name == name]))
        for check in self.failed:
            lines += ["", f"{check.name}, {check.model}:", *(f"  {line}" for line in check.reason.splitlines())]
        return "\n".join(lines)

    __repr__ = __str__


def check_method(
    method: str,
    options: Mapping[str, Any] | None = None,
    architectures: Iterable[str] = tuple(TINY_MODELS),
    promises: Iterable[int] = tuple(range(1, 12)),
    *,
    longer: Mapping[str, Any] | None = None,
    stochastic: bool = False,
    raises: bool = True,
) -> Checked:
    """Check a method against the promises, in one line: in a pytest test, interactively, or in a notebook.

    It runs the result of `conformance_suite` in a separate pytest; methods that were only registered are found, too.

    Args:
        method: Name of a registered method.
        options: As in `conformance_suite`.
        architectures: As in `conformance_suite`.
        promises: As in `conformance_suite`.
        longer: As in `conformance_suite`.
        stochastic: As in `conformance_suite`.
        raises: Whether a broken promise is an error.

    Returns:
        The result; it prints as a summary.

    Raises:
        AssertionError: If a promise is broken, with the summary.
        UnknownMethodError: If there is no such method.
    """
    name = get_method(method).name
    suite = conformance_suite(name, options, architectures, longer, promises, stochastic)
    found = Checked(name, tuple(_run(suite)))
    if raises and not found.is_kept:
        raise AssertionError(str(found))
    return found


class _Recorder:
    """A pytest plugin that records the result of each check, and shows the progress."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self._bar: Any = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        is_hidden = False if issubclass(tqdm, tqdm_notebook) else None  # otherwise it asks whether there is a terminal
        self._bar = tqdm(total=len(session.items), desc="checks", leave=False, disable=is_hidden)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != PASSED:
            self.checks.append(_check(report))
        if report.when == "teardown":
            self._bar.update()

    def pytest_sessionfinish(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _run(suite: type) -> list[Check]:
    """Run a suite in a separate pytest."""
    recorder, told = _Recorder(), io.StringIO()
    with tempfile.TemporaryDirectory(prefix="check_") as folder:
        file = Path(folder) / f"test_{Path(folder).name}.py"  # pytest caches modules by name
        file.write_text(FILE.format(folder), "utf-8")
        (Path(folder) / "pytest.ini").write_text("[pytest]\n", "utf-8")
        SUITES[folder] = suite
        try:
            with contextlib.redirect_stdout(told), _without_options():
                code = pytest.main([*OPTIONS, "--rootdir", folder, "--basetemp", f"{folder}/t", str(file)], [recorder])
        finally:
            del SUITES[folder]
            sys.modules.pop(file.stem, None)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise PluginError(f"pytest ended with {code!r} and checked nothing; its output: {told.getvalue().strip()}")
    return recorder.checks


@contextlib.contextmanager
def _without_options() -> Any:
    """Keep the options of the user's own pytest out of ours."""
    kept = os.environ.pop("PYTEST_ADDOPTS", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["PYTEST_ADDOPTS"] = kept


def _check(report: pytest.TestReport) -> Check:
    function, _, parameters = report.nodeid.rpartition("::")[2].removeprefix("test_").partition("[")
    return Check(function.replace("_", " "), parameters.removesuffix("]"), report.outcome, _reason(report))


def _reason(report: pytest.TestReport) -> str:
    """Return why a check was skipped or failed, in as few lines as possible."""
    if report.outcome == REFUSED and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return report.longreprtext if crash is None else f"{crash.message}\n({crash.path}:{crash.lineno})"


def _line(name: str, checks: list[Check]) -> str:
    """Return a line of the summary: a check, and its results on all models."""
    mark = "✗" if FAILED in (outcomes := {check.outcome for check in checks}) else "✓" if PASSED in outcomes else " "
    return f"  {mark} {name}: {_counted(checks)}"


def _counted(checks: Iterable[Check]) -> str:
    counts = collections.Counter(check.outcome for check in checks)
    shown = [f"{counts[outcome]} {outcome}" for outcome in (PASSED, FAILED, REFUSED) if counts[outcome]]
    return ", ".join(shown) or "nothing to check"
