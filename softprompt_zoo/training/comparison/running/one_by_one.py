"""Trials in this process, one after the other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.running.run_trial import run_trial
from softprompt_zoo.training.comparison.trial import Trial

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.running.runner import Begin, Keep


def one_by_one(trials: Sequence[Trial], bench: Bench, begin: "Begin", keep: "Keep") -> None:
    """Run trials one after the other; a `Runner`."""
    for trial in trials:
        keep(trial, run_trial(trial, bench, begin(trial, 1)))
