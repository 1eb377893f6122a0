"""Trials that several processes share: each runs those that no other process has started."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.running.run_trial import run_trial
from softprompt_zoo.training.comparison.search.workers import Workers
from softprompt_zoo.training.comparison.store import Store
from softprompt_zoo.training.comparison.trial import Trial

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.running.runner import Begin, Keep

PAUSE = 0.5
"""Seconds between two checks of what other processes do."""


class Sharing:
    """Runs trials that other processes run at the same time; a `Runner`."""

    def __init__(self, workers: Workers, store: Store) -> None:
        self.workers, self.store = workers, store

    def __call__(self, trials: Sequence[Trial], bench: Bench, begin: "Begin", keep: "Keep") -> None:
        """Run trials, and wait for the results of other processes."""
        waiting = list(trials)
        while waiting:
            left = [trial for trial in waiting if not self._is_done(trial, bench, begin, keep)]
            if len(left) == len(waiting):
                time.sleep(PAUSE)
            waiting = left

    def _is_done(self, trial: Trial, bench: Bench, begin: "Begin", keep: "Keep") -> bool:
        """Run a trial or take its result; return whether it has a result now."""
        result = self.store.load(trial)
        with self.workers.claim(trial.key) as is_mine:
            if result is None and not is_mine:
                return False
            keep(trial, result or self.store.load(trial) or run_trial(trial, bench, begin(trial, 1)))
        return True
