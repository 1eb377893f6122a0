"""The interface of all ways to run trials."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from softprompt_zoo.training.comparison.bench import Bench
    from softprompt_zoo.training.comparison.trial import Trial, TrialResult

    Keep = Callable[[Trial, TrialResult], None]


class Watching(Protocol):
    """The interface that runners report the start of trials to."""

    def begin(self, trial: "Trial", count: int = 1) -> "list[TrainerCallback]":
        """Note a trial that begins, possibly the first of a group of `count`; return the callbacks for its training."""


class Runner(Protocol):
    """A way to run trials; equal trials give equal results in all of them, except for times and memory."""

    def __call__(self, trials: "Sequence[Trial]", bench: "Bench", watching: Watching, keep: "Keep") -> None:
        """Run trials.

        Args:
            trials: The trials to run.
            bench: The loaded model and the rows.
            watching: Notified when trials begin.
            keep: Called once per trial with its result, in any order, as soon as it is available.
        """


def one_by_one(trials: "Sequence[Trial]", bench: "Bench", watching: Watching, keep: "Keep") -> None:
    """Run trials in this process, one after the other; a `Runner`."""
    from softprompt_zoo.training.comparison.run_trial import run_trial

    for trial in trials:
        keep(trial, run_trial(trial, bench, watching.begin(trial)))
