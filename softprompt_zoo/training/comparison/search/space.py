"""The search space: the options that fit the model, and a range of learning rates."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Protocol

from softprompt_zoo.training.comparison.trial import Trial

WIDTH = 10.0
"""A single rate is searched from a tenth to ten times its value. Our choice."""


class Suggestions(Protocol):
    """A source of suggested values: a trial of Optuna."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """Return one of the choices."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return a number from the range."""


@dataclasses.dataclass(frozen=True)
class Space:
    """The space of one candidate."""

    line: Trial
    """A trial of the candidate; its options and learning rate are replaced."""
    options: tuple[str, ...]
    """The sets of options to choose from, each as JSON."""
    rates: tuple[float, float]
    """The smallest and the largest learning rate."""

    def suggest(self, trial: Suggestions) -> Trial:
        """Return a trial with suggested options and rate; the rate has three digits so that people can repeat it."""
        chosen = trial.suggest_categorical("options", self.options)
        rate = trial.suggest_float("learning_rate", *self.rates, log=True)
        return dataclasses.replace(self.line, options=json.loads(chosen), learning_rate=float(f"{rate:.3g}"))

    def described(self) -> dict[str, Any]:
        """Return everything the search depends on apart from what all trials share, as JSON values."""
        line = self.line
        return {
            "options": [json.loads(one) for one in self.options],
            "learning_rates": list(self.rates),
            "steps": line.steps,
            "batch_size": line.batch_size,
            "seed": line.seed,
        }


def spaces_of(trials: Sequence[Trial]) -> list[Space]:
    """Return the search space of each trained candidate.

    Args:
        trials: All trials of a plan, with each of the requested rates and options; those of the first seed are
            searched.

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
