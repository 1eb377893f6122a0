"""Compare this checkout's speed with that of another commit: attaching, forward, training step, decoding, many prompts.

Run from the repository root; run the command again to resume it::

    python benchmarks/ratios.py --against 5ffa003

Both sides run at the same time, each in a process with one thread, and take turns call by call. The exit code is 1 if
this checkout is slower by more than ``--allow`` percent, beyond the spread. See benchmarks/README.md.
"""

import compileall
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from common import markdown, versions, write
from runner import Experiment, Result, Runner, command

CHECKOUT = Path(__file__).parents[1]
PACKAGE = "softprompt_zoo"
SIDES = ("there", "here")
FIRST = {"import": "import", "attach a prefix, first in a process": "attach a prefix"}
"""Measures that are timed once, in a fresh process, by their names in the table."""
IN_IT = ", of which imports"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    against: str = "5ffa003"
    """The commit that this checkout is compared with."""
    model: str = "default"
    """`default` has SmolLM2-135M's sizes; `tiny` shows mainly the package's own work."""
    rounds: int = 5
    """Pairs of processes."""
    repeats: int = 8
    """Timed calls of each measure in each process, after one that does not count."""
    allow: float = 3.0
    """Percent by which a measure may be slower."""


def unpack(commit: str, folder: Path) -> None:
    """Extract the package at a commit into a folder.

    Raises:
        FileNotFoundError: If there is no such commit.
    """
    archive = subprocess.run(["git", "archive", commit, PACKAGE], cwd=CHECKOUT, capture_output=True, check=False)
    if archive.returncode:
        raise FileNotFoundError(f"--against {commit}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


def copy_package(folder: Path) -> None:
    """Copy this checkout's package into a folder, where it cannot change while it is timed."""
    shutil.copytree(CHECKOUT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))


class Bench:
    """The two sides of the comparison."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folders = {side: folder / side for side in SIDES}
        unpack(settings.against, self.folders["there"])
        copy_package(self.folders["here"])

    def options(self) -> dict[str, Any]:
        """Return what a result depends on: the settings, and the contents of both sources rather than their names."""
        return {
            "sources": {side: _checksum(folder / PACKAGE) for side, folder in self.folders.items()},
            "model": self.settings.model,
            "repeats": self.settings.repeats,
        }

    def take_turns(self, seed: int) -> Result:
        """Time all measures in one pair of processes, which alternate in going first from turn to turn."""
        for folder in self.folders.values():
            compileall.compile_dir(folder, quiet=1)  # like an installed package
        with contextlib.ExitStack() as stack:
            workers = {side: stack.enter_context(_worker(self.folders[side], self.settings.model)) for side in SIDES}
            names, _ = (worker.read() for worker in workers.values())
            found: Result = {}
            for turn, (label, name) in enumerate(self._plan(names), start=seed):
                order = SIDES if turn % 2 == 0 else SIDES[::-1]
                took = {side: workers[side].ask(name) for side in order}
                if label is not None:
                    _note(found, label, {side: seconds for side, (seconds, _) in took.items()})
                if label in FIRST and label != name:
                    _note(found, label + IN_IT, {side: imports for side, (_, imports) in took.items()})
        return found

    def _plan(self, names: Sequence[str]) -> Iterator[tuple[str | None, str]]:
        """List the calls in order: the name under which a call counts, if any, and its measure."""
        yield from FIRST.items()
        for name in names:
            if name != "import":
                yield from ((label, name) for label in (None, *[name] * self.settings.repeats))


def _note(found: Result, label: str, seconds: dict[str, float]) -> None:
    for side, value in seconds.items():
        found.setdefault(label, {}).setdefault(side, []).append(round(value, 6))


class _Worker:
    """A process that times measures on request."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def read(self) -> Any:
        """Return the next answer of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}; see its error above")
        return json.loads(line)

    def ask(self, name: str) -> Any:
        """Let the process time a measure, and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self.read()


@contextlib.contextmanager
def _worker(folder: Path, model: str) -> Iterator[_Worker]:
    """Start a process that imports the package from a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled only once, not at every import
    arguments = [sys.executable, str(Path(__file__).with_name("timed.py")), model, str(folder)]
    with subprocess.Popen(
        arguments, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _Worker(process)
        finally:
            process.kill()


def _checksum(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One measure: its seconds on each side, and the quartiles of the ratio of `here` to `there` within a turn."""

    name: str
    there: float
    here: float
    quartiles: tuple[float, float, float]

    def is_slower(self, allow: float) -> bool:
        """Return whether this checkout is slower by more than `allow` percent, beyond the spread."""
        return self.quartiles[0] > 1 + allow / 100


def ratios(results: Sequence[Result]) -> list[Ratio]:
    """Return the ratio of every measure, over all turns of all rounds."""
    found = []
    for name in results[0] if results else ():
        there, here = ([seconds for result in results for seconds in result[name][side]] for side in SIDES)
        of_turns = torch.tensor([b / a if a else 1.0 for a, b in zip(there, here, strict=True)], dtype=torch.float64)
        quartiles = of_turns.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        found.append(Ratio(name, statistics.median(there), statistics.median(here), tuple(quartiles)))
    return found


def table(settings: Settings, found: Sequence[Ratio]) -> str:
    """Return the table of the ratios, in Markdown."""
    lines = [
        [
            one.name,
            f"{1000 * one.there:.1f}",
            f"{1000 * one.here:.1f}",
            f"{one.quartiles[1]:.3f} ({one.quartiles[0]:.3f} to {one.quartiles[2]:.3f})",
            "slower" if one.is_slower(settings.allow) and IN_IT not in one.name else "",
        ]
        for one in found
    ]
    heads = [
        "measure",
        f"{settings.against}, ms",
        "this checkout, ms",
        "ratio (quartiles)",
        f"beyond {settings.allow:g}%",
    ]
    return markdown(heads, lines) + "\n"


def make(slower: list[str], scratch: Path, settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table and notes what is slower."""
    bench = Bench(settings, scratch)
    name = f"turns-{settings.model}"
    experiment = Experiment(name=name, measure=bench.take_turns, options=bench.options, seeds=settings.rounds)
    runner = Runner(folder, {"versions": versions("transformers", "torch")}, [experiment])

    def write_table() -> None:
        found = ratios(runner.results(name))
        write(folder / "table.md", table(settings, found))
        slower.extend(one.name for one in found if one.is_slower(settings.allow) and IN_IT not in one.name)

    return runner, write_table


def main(arguments: list[str] | None = None) -> None:
    """Compare, print the table, and exit with 1 if something is slower."""
    slower: list[str] = []
    with tempfile.TemporaryDirectory(prefix="softprompt-zoo-ratios-") as scratch:
        compare = functools.partial(make, slower, Path(scratch))
        command((__doc__ or "").splitlines()[0], Settings, "ratios", compare)(arguments)
    if slower:
        raise SystemExit("\n".join(["slower:", *slower]))


if __name__ == "__main__":
    main()
