"""The lines of the table: the results of one candidate, summarized over seeds."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from softprompt_zoo.training.comparison.plan import variants_of
from softprompt_zoo.training.comparison.statistics import Interval, interval
from softprompt_zoo.training.comparison.trial import Trial, TrialResult


@dataclasses.dataclass(frozen=True)
class Line:
    """A candidate with its options, over its seeds."""

    trial: Trial
    """Without its seed."""
    seeds: tuple[int, ...]
    """Seeds that have a result."""
    results: tuple[TrialResult, ...]
    """One per seed."""
    is_alone: bool
    """Whether its candidate has no other line, so that the candidate's name identifies it."""

    @property
    def name(self) -> str:
        """The name that distinguishes it from other lines."""
        if self.is_alone:
            return self.trial.candidate
        rate = f", rate {self.trial.learning_rate:g}" if self.trial.learning_rate is not None else ""
        return f"{self.trial.label}{rate}"

    @property
    def is_trained(self) -> bool:
        """Whether it is trained."""
        return self.trial.steps > 0

    @property
    def together(self) -> int:
        """Largest number of trials that shared their batches; 1 if each was trained alone."""
        return max(result.together for result in self.results)

    @property
    def loss(self) -> Interval:
        """The validation loss."""
        return interval([result.loss for result in self.results])

    def metric(self, name: str) -> Interval:
        """Return one of the objective's metrics."""
        return interval([result.metrics[name] for result in self.results])

    def mean(self, number: Callable[[TrialResult], float | None]) -> float | None:
        """Return the mean of a number over seeds; `None` if it does not apply."""
        values = [value for value in map(number, self.results) if value is not None]
        return statistics.fmean(values) if values else None


def summarize(trials: Sequence[Trial], results: Mapping[str, TrialResult]) -> list[Line]:
    """Summarize results over seeds.

    Args:
        trials: The trials of the comparison.
        results: The results that exist, by trial key.

    Returns:
        A line for each candidate with its options that has results, in the order of the trials.
    """
    variants, lines = variants_of(trials), []
    counts = Counter(variant.candidate for variant in variants)
    for variant in variants:
        own = [trial for trial in trials if trial.variant == variant and trial.key in results]
        if own:
            found = tuple(results[trial.key] for trial in own)
            lines.append(Line(variant, tuple(trial.seed for trial in own), found, counts[variant.candidate] == 1))
    return lines
