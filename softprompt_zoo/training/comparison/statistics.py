"""Intervals over seeds, and differences between candidates row by row."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""0.975 quantile of Student's t with 1, 2, … degrees of freedom. Source: NIST/SEMATECH e-Handbook of Statistical
Methods, section 1.3.6.7.2."""
NORMAL = statistics.NormalDist()


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds and its uncertainty."""

    mean: float
    half_width: float | None
    """Half the width of the 95% t interval over seeds; `None` for one seed, which says nothing about others."""
    count: int
    """Number of seeds."""


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of a number over seeds and its 95% t interval.

    Args:
        values: One per seed.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, len(values))
    freedom = len(values) - 1
    quantile = QUANTILES[freedom - 1] if freedom <= len(QUANTILES) else NORMAL.inv_cdf(0.975)
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)), len(values))


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two candidates differ on the same rows."""

    value: float
    """Mean of the differences, ours minus theirs."""
    error: float
    """Standard error over rows (each a mean over seeds) or over seeds, whichever is larger."""

    @property
    def p_value(self) -> float:
        """Two-sided p value under the normal distribution: the probability of so large a difference by chance."""
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return 2 * (1 - NORMAL.cdf(abs(self.value) / self.error))


def difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Difference:
    """Compare two candidates on the same rows.

    Args:
        ours: A number for each row, for each seed.
        theirs: The same for the other candidate; it may have a different number of seeds.
    """
    our_rows, their_rows = _over_seeds(ours), _over_seeds(theirs)
    rows = [our - their for our, their in zip(our_rows, their_rows, strict=True)]
    return Difference(statistics.fmean(rows), max(_error(rows), _error_over_seeds(ours, theirs)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple testing.

    Args:
        p_values: One per test.

    Returns:
        The corrected p values, in the same order.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _over_seeds(by_seed: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(row) for row in zip(*by_seed, strict=True)]


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _error_over_seeds(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Return the standard error over seeds of the difference between two independent means."""
    sides = [_error([statistics.fmean(rows) for rows in side]) for side in (ours, theirs)]
    return math.hypot(*sides)
