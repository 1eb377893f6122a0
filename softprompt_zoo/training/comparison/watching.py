"""The display of a running comparison: the table so far, a progress bar, the time left."""

import statistics
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback

from softprompt_zoo.training.amounts import shown_time
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.store import Store
from softprompt_zoo.training.comparison.summary import summarize
from softprompt_zoo.training.comparison.table import make_table
from softprompt_zoo.training.comparison.trial import Trial, TrialResult


class Watching:
    """A live table with a progress bar; a line of text for each trial if the output is not a terminal."""

    def __init__(self, trials: Sequence[Trial], bench: Bench, store: Store, console: Console) -> None:
        self._trials, self._bench, self._console = trials, bench, console
        self._results = store.results(trials)
        self._started, self._spent = time.monotonic(), 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task("", total=len(trials), completed=len(self._results), left="")
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._results:
            self._console.print(f"{len(self._results)} of {len(self._trials)} trials are already done")
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)  # the final table is printed once, below
            self._live.stop()

    def begin(self, trial: Trial, count: int) -> list[TrainerCallback]:
        """Show the trial that begins, which may be the first of a group; return the callbacks for its training.

        Args:
            trial: The trial.
            count: Number of trials of its candidate that begin together.
        """
        name = f"{trial.label}, seed {trial.seed}" if count == 1 else f"{trial.candidate}, {count} together"
        self._show(name)
        return [_Steps(lambda step: self._show(f"{name}, step {step}/{trial.steps}"))]

    def end(self, trial: Trial, result: TrialResult) -> None:
        """Show the result of a trial."""
        self._results[trial.key] = result
        self._spent += result.seconds
        if self._live is None:
            count = f"{len(self._results)} of {len(self._trials)}: {trial.label}, seed {trial.seed}"
            line = f"{count}: loss {result.loss:.3f}, {result.seconds:.0f} s{self._left}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._show("")

    @property
    def _left(self) -> str:
        """The time left, once it can be estimated."""
        there = [(trial, self._results[trial.key].seconds) for trial in self._trials if trial.key in self._results]
        left = estimate(there, [trial for trial in self._trials if trial.key not in self._results])
        return f", about {shown_time(left * self._pace)} left" if left else ""

    @property
    def _pace(self) -> float:
        """Wall-clock seconds per second of a trial: less than one if several run at a time."""
        return (time.monotonic() - self._started) / self._spent if self._spent else 1.0

    def _show(self, what: str) -> None:
        if self._live is None:
            return
        self._bar.update(self._task, description=what, completed=len(self._results), left=self._left.lstrip(", "))
        table = make_table(summarize(self._trials, self._results), self._bench.objective.metrics, self._console.width)
        self._live.update(Group(table, self._bar))


def estimate(there: Sequence[tuple[Trial, float]], waiting: Sequence[Trial]) -> float | None:
    """Estimate how long trials take, from those of the same candidate, else from others that also are (not) trained.

    Args:
        there: The finished trials, with the seconds each took.
        waiting: The trials that remain.

    Returns:
        Seconds; `None` if nothing comparable to one of them has finished.
    """
    known: dict[str | bool, list[float]] = {}
    for trial, seconds in there:
        for kind in (trial.candidate, trial.steps > 0):
            known.setdefault(kind, []).append(seconds)
    if any(trial.candidate not in known and (trial.steps > 0) not in known for trial in waiting):
        return None
    return sum(statistics.fmean(known.get(trial.candidate) or known[trial.steps > 0]) for trial in waiting)


class _Steps(TrainerCallback):
    """Reports the number of steps after each step."""

    def __init__(self, tell: Any) -> None:
        self._tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report it."""
        self._tell(state.global_step)
