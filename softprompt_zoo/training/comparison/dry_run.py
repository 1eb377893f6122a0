"""The dry run of a comparison: what it would run, and how long it would take."""

import dataclasses
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from softprompt_zoo.training.amounts import shown_time
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.plan import Plan, variants_of
from softprompt_zoo.training.comparison.running.run_trial import run_trial
from softprompt_zoo.training.comparison.trial import Trial

TIMED_STEPS = 2
"""Number of steps taken to time one. Our choice."""


def print_plan(plan: Plan, bench: Bench, is_done: Callable[[Trial], bool], console: Console) -> None:
    """Print the trials of a comparison, and how long the remaining ones would take.

    Args:
        plan: The plan of the comparison.
        bench: The model, loaded, and the rows.
        is_done: Whether a trial already has a result.
        console: Where to print.
    """
    table = Table("what", "seeds", "steps", "rows per step", "learning rate", "done")
    for variant in variants_of(plan.trials):
        own = [trial for trial in plan.trials if trial.variant == variant]
        seeds = ", ".join(str(trial.seed) for trial in own)
        rate = "-" if variant.learning_rate is None else f"{variant.learning_rate:g}"
        there = f"{sum(map(is_done, own))} of {len(own)}"
        table.add_row(variant.label, seeds, str(variant.steps), str(variant.batch_size), rate, there)
    console.print(table)
    waiting = [trial for trial in plan.trials if not is_done(trial)]
    console.print(f"{len(plan.trials)} trials, {len(waiting)} to run; {_time(waiting, bench)}", highlight=False)


def _time(waiting: list[Trial], bench: Bench) -> str:
    """Estimate the time of trials from a few steps of one of them."""
    trained = [trial for trial in waiting if trial.steps]
    if not trained:
        return "nothing to train"
    result = run_trial(dataclasses.replace(trained[-1], steps=TIMED_STEPS), bench)
    step = result.step_seconds or 0.0
    around = max(0.0, result.seconds - TIMED_STEPS * step)
    total = sum(around + trial.steps * step for trial in waiting)
    return f"about {shown_time(total)}, estimated from {TIMED_STEPS} steps of {trained[-1].candidate}"
