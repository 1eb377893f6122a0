"""The trials of a comparison: what fits the model, with every rate, length, start and seed."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

from softprompt_zoo.errors import UnsupportedError, ZooError, one_line
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.all import find_candidate
from softprompt_zoo.training.comparison.candidates.candidate import Candidate, Options
from softprompt_zoo.training.comparison.choices import Choices, Rate
from softprompt_zoo.training.comparison.running.run_trial import try_out
from softprompt_zoo.training.comparison.trial import Trial


@dataclasses.dataclass(frozen=True)
class Plan:
    """The trials to run, and the candidates that are not run."""

    trials: list[Trial]
    """In the order they are run: all candidates with the first seed, then with the next."""
    refused: dict[str, str]
    """The reason why each refused candidate is not run."""


def names_of(choices: Choices) -> list[str]:
    """Return the names of the chosen candidates, baselines first; all installed methods if none was chosen."""
    methods = list(registry.candidates()) if choices.methods is None else choices.methods
    return [*choices.baselines, *methods]


def check_names(choices: Choices) -> None:
    """Reject unknown methods before the model is loaded.

    Raises:
        UnknownMethodError: If no method has a given name; the message names the closest one.
    """
    for name in choices.methods or ():
        find_candidate(name)


def make_plan(bench: Bench, is_done: Callable[[Trial], bool], tell: Callable[[str], object] = str) -> Plan:
    """Find out by trying what fits the model.

    Args:
        bench: The model, loaded, and the rows.
        is_done: Whether a trial already has a result; it is not tried again.
        tell: Called with the name of each candidate before it is tried.

    Returns:
        The trials, and why candidates were refused.
    """
    plan, found = Plan([], {}), list[list[Trial]]()
    for name in names_of(bench.choices):
        tell(name)
        try:
            candidate = find_candidate(name)
            lines = list(_lines(candidate, bench.choices, bench))
        except (ZooError, ValueError, TypeError) as error:
            plan.refused[name] = one_line(error)
            continue
        for line in lines:
            seeds = bench.choices.seeds if candidate.varies else bench.choices.seeds[:1]
            trials = [dataclasses.replace(line, seed=seed) for seed in seeds]
            reason = None if all(map(is_done, trials)) else _problem(trials[0], bench)
            if reason is None:
                found.append(trials)
            else:
                plan.refused[line.label] = reason
    by_seed = itertools.chain.from_iterable(itertools.zip_longest(*found))
    plan.trials.extend(trial for trial in by_seed if trial is not None)
    return plan


def _lines(candidate: Candidate, choices: Choices, bench: Bench) -> Iterable[Trial]:
    """Return a trial without a seed for each of a candidate's lines of the table."""
    for options in candidate.variants(choices, bench):
        for rate in choices.rates if candidate.is_trained else (None,):
            yield _line(candidate, options, rate, choices, bench)


def _line(candidate: Candidate, options: Options, rate: Rate | None, choices: Choices, bench: Bench) -> Trial:
    line = Trial(candidate=candidate.name, options=options, shared=bench.shared)
    if rate is None:
        return line
    learning_rate = rate.of(None if candidate.recipe is None else candidate.recipe.learning_rate)
    if learning_rate is None:
        raise UnsupportedError(f"{candidate.name} has no recipe; give --learning-rates, such as 0.01")
    return dataclasses.replace(line, steps=choices.steps, batch_size=choices.batch_size, learning_rate=learning_rate)


def _problem(trial: Trial, bench: Bench) -> str | None:
    """Return why a candidate does not fit the model; `None` if it does."""
    try:
        try_out(trial, bench)
    except (ZooError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        return one_line(error)
    return None


def variants_of(trials: Sequence[Trial]) -> list[Trial]:
    """Return the lines of the table, each as a trial without a seed."""
    return list({trial.variant.key: trial.variant for trial in trials}.values())
