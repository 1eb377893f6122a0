"""The interface of all ways to run trials."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from softprompt_zoo.training.comparison.bench import Bench
    from softprompt_zoo.training.comparison.trial import Trial, TrialResult

    Begin = Callable[[Trial, int], list[TrainerCallback]]
    Keep = Callable[[Trial, TrialResult], None]


class Runner(Protocol):
    """A way to run trials; equal trials give equal results in all of them, except for times and memory."""

    def __call__(self, trials: "Sequence[Trial]", bench: "Bench", begin: "Begin", keep: "Keep") -> None:
        """Run trials.

        Args:
            trials: The trials to run.
            bench: The loaded model and the rows.
            begin: Called when a trial begins, or the first of a group, with the number of trials that begin together;
                returns the callbacks for the training.
            keep: Called once per trial with its result, in any order, as soon as it is available.
        """
