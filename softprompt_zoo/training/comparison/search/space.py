"""What a search may choose from: the options that fit the model, and a range of rates."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Protocol

from softprompt_zoo.training.comparison.trial import Trial

WIDTH = 10.0
"""A single rate is searched from a tenth of it to ten times it. Our choice."""


class Suggestions(Protocol):
    """What is asked for values: a trial of Optuna."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """Choose one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Choose a number."""


@dataclasses.dataclass(frozen=True)
class Space:
    """The space of one candidate."""

    line: Trial
    """A trial of the candidate; its options and its rate are chosen anew."""
    options: tuple[str, ...]
    """The options that may be chosen, each set as JSON."""
    rates: tuple[float, float]
    """The smallest and the largest rate."""

    def suggest(self, trial: Suggestions) -> Trial:
        """Choose options and a rate, of three digits so that people can repeat it."""
        chosen = trial.suggest_categorical("options", self.options)
        rate = trial.suggest_float("learning_rate", *self.rates, log=True)
        return dataclasses.replace(self.line, options=json.loads(chosen), learning_rate=float(f"{rate:.3g}"))

    def described(self) -> dict[str, Any]:
        """Return all that the search depends on besides what all trials share, as JSON values."""
        line = self.line
        return {
            "options": [json.loads(one) for one in self.options],
            "learning_rates": list(self.rates),
            "steps": line.steps,
            "batch_size": line.batch_size,
            "seed": line.seed,
        }


def spaces_of(trials: Sequence[Trial]) -> list[Space]:
    """Return the space of each candidate that is trained.

    Args:
        trials: All trials of a plan, with each of the rates and options that were asked for; those of the first seed
            are searched.

    Returns:
        The spaces, in the order of the candidates.
    """
    by_candidate: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.learning_rate is not None:
            by_candidate.setdefault(trial.candidate, []).append(trial)
    return [_space(own) for own in by_candidate.values()]


def _space(trials: list[Trial]) -> Space:
    options = dict.fromkeys(json.dumps(trial.options, sort_keys=True) for trial in trials)
    rates = [trial.learning_rate for trial in trials if trial.learning_rate is not None]
    low, high = min(rates), max(rates)
    return Space(trials[0], tuple(options), (low, high) if low < high else (low / WIDTH, high * WIDTH))
