"""Comparisons for tables: columns with a value per evaluation row, from the stored results of a runner."""

import dataclasses

from common import ENOUGH, Estimate, estimate
from runner import Runner

HEADS = ("what", "measure", "with", "without", "gain ± standard error", "errors", "seeds", "dtype")


@dataclasses.dataclass(frozen=True)
class Column:
    """A key of an experiment's results whose values are lists with an entry per evaluation row."""

    experiment: str
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A line of the table: a difference, or the share of a gap that is closed if there is a `best`."""

    section: str
    title: str
    measure: str
    ours: Column
    theirs: Column
    best: Column | None = None

    @property
    def is_loss(self) -> bool:
        """Whether lower values are better."""
        return "loss" in self.measure

    def statistic(self, *means: float) -> float:
        """Return the gain from the means of the columns; if there is a `best`, the share of the gap that is closed."""
        ours, theirs, *best = means
        gain = theirs - ours if self.is_loss else ours - theirs
        return gain / (theirs - best[0]) if best else gain


@dataclasses.dataclass(frozen=True)
class Compared:
    """The result of a comparison."""

    means: list[float]
    """Means of the columns."""
    gain: Estimate
    seeds: int
    dtype: str


def compare(runner: Runner, comparison: Comparison) -> Compared | str:
    """Compare the available results, or say why they cannot be compared."""
    columns = [column for column in (comparison.ours, comparison.theirs, comparison.best) if column is not None]
    found = [runner.results(column.experiment) for column in columns]
    if not all(found):
        missing = (runner.missing(column.experiment) for column in columns)
        return next(filter(None, missing), "not run")
    dtypes = sorted({result["dtype"] for results in found for result in results})
    if len(dtypes) > 1:
        return f"of {' and '.join(dtypes)}: delete the results of one"
    seeds = len(found[0])
    by_seed = [
        [results[min(seed, len(results) - 1)][column.key] for results, column in zip(found, columns, strict=True)]
        for seed in range(seeds)
    ]
    means = [sum(sum(seed[place]) / len(seed[place]) for seed in by_seed) / seeds for place in range(len(columns))]
    return Compared(means, estimate(by_seed, comparison.statistic), seeds, dtypes[0])


def line(runner: Runner, comparison: Comparison) -> tuple[str, ...]:
    """Return a line of the table with `HEADS`; if results cannot be compared, the line says why."""
    start = (comparison.title, comparison.measure)
    found = compare(runner, comparison)
    if isinstance(found, str):
        return (*start, found, *["-"] * (len(HEADS) - 3))
    means, gain = found.means, found.gain
    with_text = f" ({means[2]:.3f} with the text)" if comparison.best else ""
    verdict = "" if gain.errors >= ENOUGH else " (worse)" if gain.errors <= -ENOUGH else " (too few)"
    counts = f"{gain.errors:.1f}{verdict}"
    return (*start, f"{means[0]:.3f}", f"{means[1]:.3f}{with_text}", str(gain), counts, str(found.seeds), found.dtype)
