"""Compare the time and memory of eight trainings of prompt tuning in one batch and one after the other.

Run from the repository root; run the command again to resume it::

    python benchmarks/together.py

Each side of a round is a separate process. See benchmarks/README.md.
"""

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from common import markdown, versions, write
from runner import Experiment, Result, Runner, command

SIDES = ("one after the other", "together")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    model: str = "smollm2"
    dtype: str = "bfloat16"
    """Dtype of the frozen model."""
    trials: int = 8
    """Number of the rates in together_side.py that are trained."""
    steps: int = 4
    """Optimizer steps of each training."""
    batch_size: int = 4
    """Rows of each training per step."""
    rounds: int = 3
    """Pairs of processes."""
    threads: int = 1


def take_turns(settings: Settings, seed: int) -> Result:
    """Measure both sides in separate processes, which alternate in going first from round to round."""
    order = SIDES if seed % 2 == 0 else SIDES[::-1]
    found = {side: _ask(settings, side) for side in order}
    return {side: found[side] for side in SIDES}


def _ask(settings: Settings, side: str) -> Result:
    print(f"  {side}", flush=True)
    script = str(Path(__file__).with_name("together_side.py"))
    words = [sys.executable, script, side, json.dumps(dataclasses.asdict(settings))]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: the medians of both sides, and the ratio of together to one after the other by round."""

    name: str
    unit: float
    alone: list[float]
    together: list[float]

    def cells(self) -> list[str]:
        """Return the cells as text."""
        ratios = [b / a for a, b in zip(self.alone, self.together, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        medians = (statistics.median(side) / self.unit for side in (self.alone, self.together))
        return [self.name, *(f"{value:.2f}" for value in medians), spread]


def lines(results: Sequence[Result]) -> list[Line]:
    """Return the lines of the table."""

    def sides(value: Callable[[Result], float]) -> tuple[list[float], list[float]]:
        alone, together = ([value(result[side]) for result in results] for side in SIDES)
        return alone, together

    return [
        Line("time of all steps by the clock, s", 1.0, *sides(lambda one: one["wall_seconds"])),
        Line("processor time of all steps, s", 1.0, *sides(lambda one: one["processor_seconds"])),
        Line("memory at the peak, GiB", 2**30, *sides(lambda one: one["peak_bytes"])),
    ]


def largest_difference(results: Sequence[Result]) -> float:
    """Return the largest difference between the losses of a step when trained together and alone."""
    pairs = [
        abs(a - b)
        for result in results
        for alone, together in zip(*(result[side]["losses"] for side in SIDES), strict=True)
        for a, b in zip(alone, together, strict=True)
    ]
    return max(pairs)


def table(settings: Settings, results: Sequence[Result]) -> str:
    """Format the measurements."""
    if not results:
        return "no results yet\n"
    heads = ["", *SIDES, "ratio (range)"]
    text = markdown(heads, [line.cells() for line in lines(results)])
    counts = f"{settings.trials} rates, {settings.steps} steps of {settings.batch_size} rows each"
    caption = f"{counts}; {len(results)} rounds; {settings.model} in {settings.dtype}, {settings.threads} thread(s)"
    return f"{text}\n\n{caption}. Losses of the same step differ by at most {largest_difference(results):.4f}.\n"


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table."""
    options = {name: value for name, value in dataclasses.asdict(settings).items() if name != "rounds"}
    measure = functools.partial(take_turns, settings)
    experiment = Experiment(name="rates", measure=measure, options=lambda: options, seeds=settings.rounds)
    runner = Runner(folder, {"versions": versions("softprompt-zoo", "transformers", "torch")}, [experiment])
    return runner, lambda: write(folder / "table.md", table(settings, runner.results("rates")))


main = command((__doc__ or "").splitlines()[0], Settings, "together", make)


if __name__ == "__main__":
    main(None)
