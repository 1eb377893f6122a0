"""Trials of one method in shared batches, on a model that is loaded once."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.choices import BASELINES
from softprompt_zoo.training.comparison.running.one_by_one import one_by_one
from softprompt_zoo.training.comparison.running.run_group import run_group
from softprompt_zoo.training.comparison.store import TOGETHER_FOLDER
from softprompt_zoo.training.comparison.trial import Trial

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.running.runner import Begin, Keep


class Together:
    """Runs several trials of a method at a time; a `Runner`. Trials that cannot share batches are run one by one."""

    def __init__(self, count: int, tell: Callable[[str], object]) -> None:
        """Set the size of the groups.

        Args:
            count: Maximum number of trials that share their batches.
            tell: Called with a message that says what is run one by one, and why.
        """
        self.count = count
        self.tell = tell

    def __call__(self, trials: Sequence[Trial], bench: Bench, begin: "Begin", keep: "Keep") -> None:
        """Run trials; the results of a group are kept once the whole group has finished."""
        refused = set[str]()
        for group in groups(trials, self.count):
            candidate = group[0].candidate
            if len(group) > 1 and candidate not in refused:
                try:
                    results = run_group(group, bench, begin(group[0], len(group)))
                except UnsupportedError as error:
                    refused.add(candidate)
                    self.tell(f"{candidate} is trained one by one: {error}")
                else:
                    for trial, result in results:
                        keep(trial, result)
                    continue
            one_by_one(group, bench, begin, keep)
        shutil.rmtree(Path(bench.settings.output) / TOGETHER_FOLDER, ignore_errors=True)


def groups(trials: Sequence[Trial], count: int) -> list[list[Trial]]:
    """Group trials that can share batches: those of one method with the same budget.

    Args:
        trials: Trials in any order.
        count: Maximum number of trials in a group.

    Returns:
        The groups, in the order of their first trials; each trial of a baseline is a group by itself.
    """
    alike: dict[tuple[str, int, int], list[Trial]] = {}
    for trial in trials:
        alike.setdefault((trial.candidate, trial.steps, trial.batch_size), []).append(trial)
    found = list[list[Trial]]()
    for (candidate, _, _), own in alike.items():
        size = 1 if candidate in BASELINES else count
        found += [own[start : start + size] for start in range(0, len(own), size)]
    return found
