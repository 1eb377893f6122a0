"""A search in rounds: each takes several trials of every study, to be run in shared batches or on a cluster."""

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
    """The trial as the study knows it."""
    trial: Trial
    """The trial to run."""


class Rounds:
    """Runs trials in rounds. None is pruned: studies get the results only after a whole round has finished."""

    def __init__(
        self, bench: Bench, store: Store, tell: Callable[[str], object], runner: Runner, at_once: Callable[[int], int]
    ) -> None:
        """Set how trials are run.

        Args:
            bench: The loaded model and the rows.
            store: Where results are kept.
            tell: Called with a line about the result of each trial.
            runner: Runs the trials of a round.
            at_once: Returns the number of trials per study in a round, given the number of studies.
        """
        self._bench, self._store, self._tell = bench, store, tell
        self._runner, self._at_once = runner, at_once

    def finish(self, studies: Sequence[Study]) -> None:
        """Run trials until every study has the requested number.

        Args:
            studies: The studies; no other process takes trials from them.
        """
        for study in studies:
            study.take_up()
        while asked := self._ask(studies):
            self._run(asked)

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
        """Run the trials without a result; those that do not finish are given back to their studies."""
        trials = {one.trial.key: one.trial for one in asked}
        waiting = [trial for trial in trials.values() if not self._store.has(trial)]
        try:
            self._runner(waiting, self._bench, _show_nothing, self._store.save)
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


def _show_nothing(trial: Trial, count: int) -> list[TrainerCallback]:
    """Return no callbacks: trainings of a search are not shown."""
    return []
