"""What every way to run trials offers."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from softprompt_zoo.training.comparison.bench import Bench
    from softprompt_zoo.training.comparison.trial import Trial, TrialResult

    Keep = Callable[[Trial, TrialResult], None]


class Watching(Protocol):
    """What is told of trials."""

    def begin(self, trial: "Trial", count: int = 1) -> "list[TrainerCallback]":
        """Hear which trial begins, the first of a group of `count` perhaps; return what follows its training."""


class Runner(Protocol):
    """A way to run trials; equal trials give equal results in each, but for times and memory."""

    def __call__(self, trials: "Sequence[Trial]", bench: "Bench", watching: Watching, keep: "Keep") -> None:
        """Run trials.

        Args:
            trials: What to run.
            bench: The model, loaded, and the rows.
            watching: Told what begins.
            keep: Given every trial once with its result, in any order, as soon as it is there.
        """


def one_by_one(trials: "Sequence[Trial]", bench: "Bench", watching: Watching, keep: "Keep") -> None:
    """Run trials in this process, one after the other; a `Runner`."""
    from softprompt_zoo.training.comparison.run_trial import run_trial

    for trial in trials:
        keep(trial, run_trial(trial, bench, watching.begin(trial)))
