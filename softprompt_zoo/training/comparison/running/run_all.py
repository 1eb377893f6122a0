"""Running the trials without a result, by any runner, while the user watches."""

from collections.abc import Sequence

from rich.console import Console

from softprompt_zoo.errors import StoppedError
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.running.runner import Runner
from softprompt_zoo.training.comparison.store import Store
from softprompt_zoo.training.comparison.trial import Trial, TrialResult
from softprompt_zoo.training.comparison.watching import Watching


def run_all(trials: Sequence[Trial], bench: Bench, store: Store, console: Console, runner: Runner) -> None:
    """Run the trials without a result, and keep each result immediately.

    Args:
        trials: All trials.
        bench: The loaded model and the rows.
        store: Where results are kept.
        console: Where progress goes.
        runner: How trials are run.

    Raises:
        StoppedError: If the user stopped it.
    """
    waiting = [trial for trial in trials if not store.has(trial)]
    with Watching(trials, bench, store, console) as watching:

        def keep(trial: Trial, result: TrialResult) -> None:
            store.save(trial, result)
            watching.end(trial, result)

        try:
            runner(waiting, bench, watching.begin, keep)
        except KeyboardInterrupt as error:
            raise StoppedError("stopped; to continue, run the same command again") from error
