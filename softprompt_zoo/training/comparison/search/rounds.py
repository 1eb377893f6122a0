"""A search in rounds: each takes trials of every study at once, to be run in one batch or on a cluster."""

import dataclasses
from collections.abc import Callable, Sequence

import optuna
from transformers import TrainerCallback

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.running.runner import Runner
from softprompt_zoo.training.comparison.search.study import Study
from softprompt_zoo.training.comparison.store import Store
from softprompt_zoo.training.comparison.trial import Trial


@dataclasses.dataclass(frozen=True)
class Asked:
    """A trial that a study has chosen."""

    study: Study
    asked: optuna.Trial
    """What the study is told of."""
    trial: Trial
    """What is run."""


class Rounds:
    """Runs the trials of studies round by round. No training is given up: a study hears of it when all are there."""

    def __init__(
        self, bench: Bench, store: Store, tell: Callable[[str], object], runner: Runner, at_once: Callable[[int], int]
    ) -> None:
        """Choose how trials are run.

        Args:
            bench: The model, loaded, and the rows.
            store: Where results are kept.
            tell: Told what each trial gave.
            runner: Runs the trials of a round.
            at_once: From the number of studies to how many trials of each make a round.
        """
        self._bench, self._store, self._tell = bench, store, tell
        self._runner, self._at_once = runner, at_once

    def finish(self, studies: Sequence[Study]) -> None:
        """Run trials until every study has as many as were asked for.

        Args:
            studies: The studies, which no other process takes trials from.
        """
        for study in studies:
            study.take_up()
        while asked := self._ask(studies):
            self._run(asked)

    def begin(self, trial: Trial, count: int = 1) -> list[TrainerCallback]:
        """Follow no training."""
        return []

    def _ask(self, studies: Sequence[Study]) -> list[Asked]:
        found = []
        for study in studies:
            for _ in range(self._at_once(len(studies))):
                asked = study.ask()
                if asked is None:
                    break
                found.append(Asked(study, asked, study.space.suggest(asked)))
        return found

    def _run(self, asked: Sequence[Asked]) -> None:
        """Run the trials that are not there; what does not come to its end is given back to its study."""
        trials = {one.trial.key: one.trial for one in asked}
        waiting = [trial for trial in trials.values() if not self._store.has(trial)]
        try:
            self._runner(waiting, self._bench, self, self._store.save)
        finally:
            for one in asked:
                self._settle(one)

    def _settle(self, one: Asked) -> None:
        result = self._store.load(one.trial)
        if result is None:
            one.study.give_back(one.asked)
            return
        one.study.tell(one.asked, result.loss)
        place = f"{one.study.place_of(one.asked)} of {one.study.count}"
        self._tell(f"{one.trial.label}, learning rate {one.trial.learning_rate:g}, {place}: loss {result.loss:.4f}")
