"""The measure that lines are compared by: the objective's main metric if it can be computed by row, else the loss."""

import statistics
from collections.abc import Sequence

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.statistics import Interval, interval
from softprompt_zoo.training.comparison.summary import Line

TOLERANCE = 1e-6


class Measure:
    """The loss of each row; less is better."""

    title = "loss per row"
    sign = -1
    """1 if more is better, else -1."""

    def __init__(self, bench: Bench) -> None:
        self.count = len(bench.examples)
        """Number of validation rows."""
        self.answers = [bench.objective.shown(example)[1] for example in bench.examples]
        """The right answers."""

    def values(self, line: Line) -> list[list[float]]:
        """Return the value of each row for each seed."""
        return [list(result.row_losses) for result in line.results]

    def rows(self, line: Line) -> list[list[float]]:
        """Return how good each row is for each seed: more is better."""
        return [[self.sign * value for value in values] for values in self.values(line)]

    def over_seeds(self, line: Line) -> Interval:
        """Return the mean over rows and its interval over seeds."""
        return interval([statistics.fmean(values) for values in self.values(line)])

    def goodness(self, line: Line) -> float:
        """Return a number that is larger for better lines."""
        return self.sign * self.over_seeds(line).mean


class Right(Measure):
    """Whether the answer to each row is the right one; its mean is the objective's main metric."""

    sign = 1

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.title = bench.objective.metrics[0].title

    def values(self, line: Line) -> list[list[float]]:
        """Return, for each seed, 1 for each row that was answered correctly, else 0."""
        return [
            [float(answer == right) for answer, right in zip(result.answers, self.answers, strict=True)]
            for result in line.results
        ]


def measure_of(bench: Bench, lines: Sequence[Line]) -> Measure:
    """Find out by trying which measure can compare lines row by row.

    Args:
        bench: The rows and their objective.
        lines: The lines of the table.
    """
    right, main = Right(bench), bench.objective.metrics[0].name
    answers_all = all(len(result.answers) == right.count for line in lines for result in line.results)
    if answers_all and all(abs(right.over_seeds(line).mean - line.metric(main).mean) < TOLERANCE for line in lines):
        return right
    return Measure(bench)
