"""The study of one candidate: the next trial, the finished ones, and those of processes that have ended."""

import datetime
import json
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from softprompt_zoo.errors import OutputError
from softprompt_zoo.training.comparison.search.space import Space
from softprompt_zoo.training.comparison.search.workers import Workers

JOURNAL_FILE = "journal.log"
STARTUP_TRIALS = 4
"""Trials that are never pruned, because there is little to compare them with. Our choice."""
APART = 100_003
"""Difference between the seeds of two processes: more than a study has trials. Our choice."""
WORKER, SPACE = "worker", "space"
"""Names of the attributes that trials and studies store."""
GRACE = datetime.timedelta(minutes=1)
"""After this time, a running trial without a stored worker is taken to be of a process that was killed at once."""


class Study:
    """Trials of one candidate, from which several processes may take."""

    def __init__(self, folder: Path, space: Space, count: int, workers: Workers, worker: int) -> None:
        """Open a study, or create it.

        Args:
            folder: The folder with the journal of all studies.
            space: The search space.
            count: Number of trials.
            workers: The processes.
            worker: The number of this process.

        Raises:
            OutputError: If the existing study belongs to another search.
        """
        self.space, self.count, self._workers, self._worker = space, count, workers, worker
        path = str(folder / JOURNAL_FILE)
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))),
            study_name=space.line.candidate,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
            direction="minimize",
            load_if_exists=True,
        )
        # Another process, or a resumed one, must not draw the same first trials again.
        drawn = len(self._trials) + worker * APART
        self._study.sampler = optuna.samplers.TPESampler(seed=(space.line.seed + drawn) % 2**32)
        self._check(folder)

    def _check(self, folder: Path) -> None:
        """Refuse the study of another search, and store what this one depends on."""
        now = json.loads(json.dumps(self.space.described()))
        before = self._study.user_attrs.get(SPACE, now)
        for name, value in now.items():
            if before.get(name) != value:
                raise OutputError(
                    f"--output {folder.parent} holds another search of {self.space.line.candidate}, whose "
                    f"{name.replace('_', ' ')} were {before.get(name)!r} and are now {value!r}; give a new folder, or "
                    "--overwrite to remove the other search"
                )
        self._study.set_user_attr(SPACE, now)

    def ask(self) -> optuna.Trial | None:
        """Return the next trial; `None` if the study has the requested number."""
        trial = self._study.ask()
        trial.set_user_attr(WORKER, self._worker)
        if self.place_of(trial) <= self.count:
            return trial
        self._study.tell(trial, state=TrialState.FAIL)
        return None

    def place_of(self, trial: optuna.Trial) -> int:
        """Return the position of a trial among those that were not given back, from 1."""
        before = [one for one in self._trials if one.number < trial.number and one.state != TrialState.FAIL]
        return len(before) + 1

    def tell(self, trial: optuna.Trial, loss: float) -> None:
        """Record the loss of a trial; NaN counts as infinite."""
        self._study.tell(trial, loss if loss == loss else float("inf"))

    def prune(self, trial: optuna.Trial) -> None:
        """Record that a trial was pruned."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def give_back(self, trial: optuna.Trial | FrozenTrial) -> None:
        """Queue a trial that did not finish to be run again."""
        self._study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            self._study.enqueue_trial(trial.params)

    def take_up(self) -> bool:
        """Give back the trials of processes that have ended; return whether there were any."""
        gone = [trial for trial in self._running if self._is_gone(trial)]
        for trial in gone:
            self.give_back(trial)
        return bool(gone)

    @property
    def is_over(self) -> bool:
        """Whether no process is running one of its trials."""
        return not self._running

    @property
    def best(self) -> FrozenTrial:
        """The trial with the lowest loss, the first one if there are several."""
        done = [trial for trial in self._trials if trial.state == TrialState.COMPLETE]
        return min(done, key=lambda trial: (trial.value, trial.number))

    @property
    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials if trial.state == TrialState.RUNNING]

    def _is_gone(self, trial: FrozenTrial) -> bool:
        """Return whether the process that started a trial has ended; this process runs none when it asks."""
        worker: Any = trial.user_attrs.get(WORKER)
        if worker is None:
            return trial.datetime_start is not None and datetime.datetime.now() - trial.datetime_start > GRACE
        return worker == self._worker or not self._workers.is_there(worker)
