"""A search, possibly with other processes on the same studies; then the best of each candidate with every seed."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

import optuna
from rich.console import Console

from softprompt_zoo.errors import OutputError, StoppedError
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.plan import Plan
from softprompt_zoo.training.comparison.running.choice import Running
from softprompt_zoo.training.comparison.running.run_all import run_all
from softprompt_zoo.training.comparison.running.run_trial import run_trial
from softprompt_zoo.training.comparison.running.runner import Runner
from softprompt_zoo.training.comparison.search.pruning import Pruning
from softprompt_zoo.training.comparison.search.rounds import Rounds
from softprompt_zoo.training.comparison.search.sharing import Sharing
from softprompt_zoo.training.comparison.search.space import spaces_of
from softprompt_zoo.training.comparison.search.study import Study
from softprompt_zoo.training.comparison.search.workers import Workers
from softprompt_zoo.training.comparison.store import SEARCH_FOLDER, Store
from softprompt_zoo.training.comparison.trial import Trial
from softprompt_zoo.training.folder import locked
from softprompt_zoo.training.report import printer

PAUSE = 0.5
"""Seconds between two checks of what other processes do."""


def search(
    plan: Plan, bench: Bench, store: Store, running: Running, console: Console, *, overwrite: bool = False
) -> Plan:
    """Search for the best rate and options of each candidate, and run them with every seed.

    Args:
        plan: The trials that fit the model, with all rates and options that may be chosen.
        bench: The loaded model and the rows.
        store: Where results and studies are kept.
        running: How many trials each candidate has, and how they are run.
        console: Where progress goes.
        overwrite: Whether an earlier comparison in the folder may be removed.

    Returns:
        The plan of the trials that were run with every seed.

    Raises:
        OutputError: If the folder holds another search, or one to be removed is still running.
        StoppedError: If the user stopped it.
    """
    folder = store.folder / SEARCH_FOLDER
    workers = Workers(folder)
    if overwrite and workers.any_there():
        raise OutputError(
            f"--output {store.folder} is being searched by another process; stop it, or give a new folder"
        )
    store.open(bench.shared, overwrite=overwrite)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    alone = contextlib.nullcontext() if running.is_plain else locked(store.folder)
    with alone, workers.join() as worker:
        studies = [Study(folder, space, running.search or 0, workers, worker) for space in spaces_of(plan.trials)]
        try:
            runner = _search(studies, bench, store, running, workers, printer(console))
        except KeyboardInterrupt as error:
            raise StoppedError("stopped; to continue, run the same command again") from error
        trials = _chosen(plan, studies, bench.choices.seeds)
        run_all(trials, bench, store, console, runner)
    return dataclasses.replace(plan, trials=trials)


def _search(
    studies: Sequence[Study],
    bench: Bench,
    store: Store,
    running: Running,
    workers: Workers,
    tell: Callable[[str], object],
) -> Runner:
    """Run all trials of the studies; return the runner for the best of each."""
    if running.is_plain:
        _finish(studies, _Searcher(bench, store, tell).run)
        return Sharing(workers, store)
    runner = running.runner(tell)
    Rounds(bench, store, tell, runner, running.at_once).finish(studies)
    return runner


def _finish(studies: Sequence[Study], run: Callable[[Study], None]) -> None:
    """Run all open trials, then wait for those of other processes; take over if one of those processes ends early."""
    for study in studies:
        study.take_up()
        run(study)
    for study in studies:
        while not study.is_over:
            if study.take_up():
                run(study)
            else:
                time.sleep(PAUSE)


def _chosen(plan: Plan, studies: Sequence[Study], seeds: Sequence[int]) -> list[Trial]:
    """Return the untrained candidates and the best of each trained one, by seed."""
    best = {
        study.space.line.candidate: study.space.suggest(optuna.trial.FixedTrial(study.best.params)) for study in studies
    }
    untrained = [trial for trial in plan.trials if trial.candidate not in best]
    return [*untrained, *(dataclasses.replace(trial, seed=seed) for seed in seeds for trial in best.values())]


class _Searcher:
    """Runs the trials of a study."""

    def __init__(self, bench: Bench, store: Store, tell: Callable[[str], object]) -> None:
        self._bench, self._store, self._tell = bench, store, tell

    def run(self, study: Study) -> None:
        """Run trials until the study has the requested number."""
        while (asked := study.ask()) is not None:
            trial = study.space.suggest(asked)
            place = f"{study.place_of(asked)} of {study.count}"
            name = f"{trial.label}, learning rate {trial.learning_rate:g}, {place}"
            try:
                loss = self._loss(trial, asked)
            except optuna.TrialPruned:
                study.prune(asked)
                self._tell(f"{name}: stopped early")
                continue
            except BaseException:
                study.give_back(asked)
                raise
            study.tell(asked, loss)
            self._tell(f"{name}: loss {loss:.4f}")

    def _loss(self, trial: Trial, asked: optuna.Trial) -> float:
        """Return the loss of a trial; run it and keep its result if there is none yet."""
        result = self._store.load(trial)
        if result is None:
            result = run_trial(trial, self._bench, [Pruning(asked)])
            self._store.save(trial, result)
        return result.loss
