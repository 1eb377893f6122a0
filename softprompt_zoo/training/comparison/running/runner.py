"""What every way to run trials offers."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.bench import Bench
    from softprompt_zoo.training.comparison.trial import Trial, TrialResult
    from softprompt_zoo.training.comparison.watching import Watching


class Runner(Protocol):
    """A way to run trials; equal trials give equal results in each, but for times and memory."""

    def __call__(
        self, trials: "Sequence[Trial]", bench: "Bench", watching: "Watching"
    ) -> "Iterator[tuple[Trial, TrialResult]]":
        """Run trials, and give each result as soon as it is there.

        Args:
            trials: What to run.
            bench: The model, loaded, and the rows.
            watching: Told what begins.

        Returns:
            Every trial once with its result, in any order.
        """


def one_by_one(
    trials: "Sequence[Trial]", bench: "Bench", watching: "Watching"
) -> "Iterator[tuple[Trial, TrialResult]]":
    """Run trials in this process, one after the other; a `Runner`."""
    from softprompt_zoo.training.comparison.run_trial import run_trial

    for trial in trials:
        yield trial, run_trial(trial, bench, watching.begin(trial))
