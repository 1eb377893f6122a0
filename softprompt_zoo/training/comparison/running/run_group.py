"""A group of trials trained in shared batches; each is then measured as if it had been trained alone."""

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from transformers import TrainerCallback, set_seed

from softprompt_zoo.model.attachment import detach, is_attached
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.training.arguments import KEPT_CHECKPOINTS
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.soft_prompt import SoftPrompt
from softprompt_zoo.training.comparison.running.run_trial import (
    CURVE_ROWS,
    arguments_of,
    check_unchanged,
    checksum,
    curve_interval,
    measured,
)
from softprompt_zoo.training.comparison.store import TOGETHER_FOLDER
from softprompt_zoo.training.comparison.trial import Trial, TrialResult
from softprompt_zoo.training.evaluation import target_loss
from softprompt_zoo.training.folder import latest_checkpoint
from softprompt_zoo.training.peak_memory import peak_memory
from softprompt_zoo.training.step_clock import StepClock
from softprompt_zoo.training.together.training import train_together

ALONE = "default"
"""Name of the prompt while it is measured, the same as in a trial that is run alone."""


def run_group(
    trials: Sequence[Trial], bench: Bench, callbacks: Sequence[TrainerCallback] = ()
) -> list[tuple[Trial, TrialResult]]:
    """Run trials of one method with the same budget.

    Args:
        trials: The trials to run.
        bench: The loaded model and the rows; bitwise unchanged afterwards.
        callbacks: Trainer callbacks for the training.

    Returns:
        Each trial with the result that it has alone; step time and memory are those of all trials together.

    Raises:
        UnsupportedError: If they cannot share their batches.
    """
    before, began = checksum(bench.model), time.perf_counter()
    candidate = SoftPrompt(trials[0].candidate)
    try:
        names = {f"trial{index}": trial for index, trial in enumerate(trials)}
        for name, trial in names.items():
            set_seed(trial.seed)
            candidate.attach(bench, trial, name)
        clock = StepClock()
        with peak_memory() as peak:
            histories = _train(names, candidate, bench, [clock, *callbacks])
        results = _measure_each(names, candidate, bench)
    finally:
        if is_attached(bench.model):
            detach(bench.model)
    check_unchanged(bench.model, before, trials[0])
    with_numbers_of_all = functools.partial(
        dataclasses.replace,
        step_seconds=median(clock.times) if clock.times else None,
        peak_memory=peak.bytes,
        seconds=(time.perf_counter() - began) / len(trials),
        together=len(trials),
    )
    return [(trial, with_numbers_of_all(results[name], history=histories[name])) for name, trial in names.items()]


def folder_of(trials: Sequence[Trial], bench: Bench) -> Path:
    """Return the folder with the checkpoints of a group of trials, from which a stopped group continues."""
    keys = "".join(trial.key for trial in trials)
    return Path(bench.settings.output) / TOGETHER_FOLDER / hashlib.sha256(keys.encode()).hexdigest()[:12]


def _train(
    names: dict[str, Trial], candidate: SoftPrompt, bench: Bench, callbacks: Sequence[TrainerCallback]
) -> dict[str, list[dict[str, float]]]:
    """Take all steps; return the log of each trial."""
    every = curve_interval(next(iter(names.values())))

    collate = candidate.objective(bench).collate

    def validate(model: Any) -> float:
        return target_loss(model, bench.rows[:CURVE_ROWS], collate)

    folder = folder_of(list(names.values()), bench)
    often: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": KEPT_CHECKPOINTS,
    }
    histories = train_together(
        bench.model,
        {name: arguments_of(candidate, trial, str(folder), **often) for name, trial in names.items()},
        bench.training.in_memory(),
        collate,
        validate=validate,
        callbacks=callbacks,
        checkpoint=latest_checkpoint(folder),
    )
    bench.model.eval()
    return {name: [entry for entry in log if _is_alone(entry, every)] for name, log in histories.items()}


def _is_alone(entry: dict[str, float], every: int) -> bool:
    """Return whether a trial run alone has the entry, too; it is validated only at the end of an interval."""
    return "eval_loss" not in entry or entry["step"] % every == 0


def _measure_each(names: dict[str, Trial], candidate: SoftPrompt, bench: Bench) -> dict[str, TrialResult]:
    """Measure the prompts one by one, each as the model's only prompt."""
    prompts: Any = bench.model.prompts
    trained: dict[str, Prompt] = dict(prompts.items())
    prompts.activate()
    for name in names:
        prompts.remove(name)
    results = {}
    for name, prompt in trained.items():
        with _only(prompts, prompt):
            fitted = candidate.fitted(bench)
            results[name] = dataclasses.replace(measured(fitted, bench), parameters=fitted.parameters)
    return results


@contextlib.contextmanager
def _only(prompts: Any, prompt: Prompt) -> Iterator[None]:
    prompts.insert(ALONE, prompt)
    prompts.activate(ALONE)
    yield
    prompts.activate()
    prompts.remove(ALONE)
