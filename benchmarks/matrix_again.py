"""Measure this library's cells of the matrix again, keep PEFT's, and print what changed.

Run from the repository root, after `matrix.py`; run the command again to resume it::

    python benchmarks/matrix_again.py --day 2026-11-28

Exits with 1 if a cell is wrong or in error, or is no longer right.
"""

import argparse
import dataclasses
import datetime
import multiprocessing
import sys
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import logging

import matrix
from runner import Result, Runner

LIBRARY = "softprompt_zoo"
SETTINGS = matrix.Settings()


@dataclasses.dataclass(frozen=True)
class Change:
    """A cell whose status has changed."""

    cell: str
    before: str
    after: str
    reason: str

    @property
    def is_worse(self) -> bool:
        """Whether the cell was right before, or is wrong or in error now."""
        return self.before == matrix.RIGHT or self.after in (matrix.WRONG, matrix.ERROR)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    parser.add_argument("--day", default=today, help="of the measurement; models that were measured that day are kept")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "matrix")
    parser.add_argument("--only", action="append", default=[], help="experiments whose name begins with this")
    parser.add_argument("--part", type=int, default=1, help="only every n-th cell; nothing is stored")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure the cells, store them, print what changed, and return the exit code."""
    settings = parse(arguments)
    runner, write_all = matrix.make(SETTINGS, settings.results)
    jobs = [(experiment.name, settings) for experiment in runner.chosen(settings.only)]
    changes, counts = list[Change](), Counter[str]()
    with multiprocessing.get_context("spawn").Pool(settings.processes) as pool:
        for name, found, count in pool.imap_unordered(_measure, jobs):
            changes += found
            counts += count
            worse = sum(change.is_worse for change in found)
            print(f"{name}: {dict(count)}, {len(found)} changed, {worse} for the worse", flush=True)
            for change in found:
                print(f"  {change.cell}: {change.before} -> {change.after} {change.reason}", flush=True)
    if settings.part == 1:
        write_all()
    print(f"all: {dict(counts)}; {len(changes)} changed, {sum(change.is_worse for change in changes)} for the worse")
    return int(any(change.is_worse for change in changes) or counts[matrix.WRONG] + counts[matrix.ERROR] > 0)


def _measure(job: tuple[str, argparse.Namespace]) -> tuple[str, list[Change], Counter[str]]:
    """Measure one experiment, in a worker process."""
    name, settings = job
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    runner, _ = matrix.make(SETTINGS, settings.results)
    result = runner.result(name)
    if result is None:
        raise SystemExit(f"{name} is not measured yet; run: python benchmarks/matrix.py --only {name}")
    cells = {key: value for key, value in result.items() if key.startswith(f"{LIBRARY}|")}
    if result.get(matrix.AGAIN) == settings.day:
        return name, [], Counter(status for status, _ in cells.values())
    architecture = name.removesuffix("-operations")
    now = {}
    for key in list(cells)[:: settings.part]:
        _, method, operation = key.split("|")
        now[key] = matrix.run_cell(LIBRARY, architecture, method, operation)
    if settings.part == 1:
        _keep(runner, name, {**result, **now, matrix.AGAIN: settings.day})
    changes = [
        Change(f"{architecture}|{key}", cells[key][0], status, reason)
        for key, (status, reason) in now.items()
        if status != cells[key][0]
    ]
    return name, changes, Counter(status for status, _ in now.values())


def _keep(runner: Runner, name: str, result: Result) -> None:
    runner.store.save(name, runner.run_of(name, 0), result)


if __name__ == "__main__":
    sys.exit(main())
