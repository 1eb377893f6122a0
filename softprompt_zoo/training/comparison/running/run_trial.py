"""One trial: a candidate is applied to the model, trained, measured and removed again."""

import dataclasses
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, set_seed

from softprompt_zoo.method import training_arguments
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.all import find_candidate
from softprompt_zoo.training.comparison.candidates.candidate import Candidate, Fitted
from softprompt_zoo.training.comparison.candidates.restoring import unmarked
from softprompt_zoo.training.comparison.trial import Trial, TrialResult
from softprompt_zoo.training.evaluation import target_loss
from softprompt_zoo.training.peak_memory import peak_memory
from softprompt_zoo.training.step_clock import StepClock

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

CURVE_POINTS = 4
"""Number of validations during a training."""
CURVE_ROWS = 20
"""Maximum number of validation rows that the curves are measured on. Our choice."""


def run_trial(trial: Trial, bench: Bench, callbacks: Sequence[TrainerCallback] = ()) -> TrialResult:
    """Run a trial from start to finish.

    Args:
        trial: The trial to run.
        bench: The loaded model and the rows; bitwise unchanged afterwards.
        callbacks: Trainer callbacks for the training.

    Returns:
        The result; equal trials give equal results except for times and memory.

    Raises:
        UnsupportedError: If the candidate does not fit the model.
        RuntimeError: If the trial left the model changed.
    """
    candidate = find_candidate(trial.candidate)
    before, began = checksum(bench.model), time.perf_counter()
    set_seed(trial.seed)
    with unmarked(bench.model), peak_memory() as peak, candidate.put_on(bench, trial) as fitted:
        parameters = fitted.parameters
        times, history = _train(candidate, fitted, trial, bench, callbacks)
        trained_at = peak.bytes
        result = measured(fitted, bench)
    check_unchanged(bench.model, before, trial)
    return dataclasses.replace(
        result,
        parameters=parameters,
        step_seconds=median(times) if times else None,
        peak_memory=trained_at if times else None,
        history=history,
        seconds=time.perf_counter() - began,
    )


def try_out(trial: Trial, bench: Bench) -> None:
    """Apply a candidate and run the longest rows once, so that one that cannot work is refused before any trial runs.

    Args:
        trial: The candidate.
        bench: The loaded model and the rows.

    Raises:
        UnsupportedError: If it does not fit the model.
    """
    candidate = find_candidate(trial.candidate)
    set_seed(trial.seed)
    with unmarked(bench.model), candidate.put_on(bench, trial) as fitted:
        objective = bench.objective_for(fitted)
        is_longer = fitted.trainer is None
        rows = objective.rows(bench.examples) if is_longer else [*bench.training.rows, *bench.rows]
        target_loss(fitted.model, objective.longest(rows), objective.collate)


def checksum(model: Any) -> int:
    """Return a checksum of every byte of a model's weights and of their names."""
    found = 0
    for name, tensor in model.state_dict(keep_vars=True).items():
        found = zlib.crc32(_bytes_of(tensor), zlib.crc32(name.encode(), found))
    return found


def check_unchanged(model: Any, before: int, trial: Trial) -> None:
    """Check that a trial has left the model unchanged.

    Args:
        model: The model.
        before: Its checksum before the trial.
        trial: The trial.

    Raises:
        RuntimeError: If its checksum differs.
    """
    if checksum(model) != before:
        raise RuntimeError(f"{trial.label} left the model changed; later trials would not be comparable")


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def measured(fitted: Fitted, bench: Bench) -> TrialResult:
    """Measure a trained candidate; the fields about its training are left empty."""
    found, losses = bench.measure(fitted)
    return TrialResult(
        loss=found.loss,
        metrics=found.metrics,
        row_losses=[round(loss, 5) for loss in losses],
        answers=found.answers,
        parameters=0,
        prompt_tokens=fitted.prompt_tokens,
        file_bytes=fitted.file_bytes(),
        step_seconds=None,
        peak_memory=None,
        first_token_seconds=bench.first_token_seconds(fitted),
        forgetting=None if bench.unrelated is None else bench.unrelated.forgetting(fitted),
        history=[],
        seconds=0.0,
    )


def _train(
    candidate: Candidate, fitted: Fitted, trial: Trial, bench: Bench, callbacks: Sequence[TrainerCallback]
) -> tuple[list[float], list[Mapping[str, float]]]:
    """Take all steps of a trial; return the seconds per step and the log."""
    if fitted.trainer is None:
        return [], []
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _make_trainer(candidate, fitted, trial, bench, [clock, *callbacks], folder)
        trainer.train()
    fitted.model.eval()
    return clock.times, trainer.state.log_history


def _make_trainer(
    candidate: Candidate, fitted: Fitted, trial: Trial, bench: Bench, callbacks: Sequence[TrainerCallback], folder: str
) -> "Trainer":
    assert fitted.trainer is not None, "the caller sees to that"
    collate = bench.objective_for(fitted).collate
    trainer = fitted.trainer(
        model=fitted.model,
        args=arguments_of(candidate, trial, folder),
        train_dataset=bench.training.ordered(trial.seed),
        data_collator=collate,
        callbacks=[*callbacks, _Curve(bench.rows, collate, curve_interval(trial))],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def arguments_of(candidate: Candidate, trial: Trial, folder: str, **more: Any) -> "TrainingArguments":
    """Return Trainer's arguments for a trial.

    Args:
        candidate: The candidate to train.
        trial: Its budget, rate and seed.
        folder: Where Trainer may write.
        **more: Further arguments, which override those of a plain run.
    """
    chosen: dict[str, Any] = {
        "learning_rate": trial.learning_rate,
        "max_steps": trial.steps,
        "per_device_train_batch_size": trial.batch_size,
        "seed": trial.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return training_arguments(candidate.recipe, folder, **{**chosen, **more})


def curve_interval(trial: Trial) -> int:
    """Return the number of steps between two validations of a training."""
    return max(1, trial.steps // CURVE_POINTS)


class _Curve(TrainerCallback):
    """Validates during training, with the loss of the table."""

    def __init__(self, rows: Sequence[Any], collate: Callable[..., Any], every: int) -> None:
        self._rows, self._collate, self._every = rows[:CURVE_ROWS], collate, every

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Add a point to the log."""
        if state.global_step % self._every == 0:
            loss = target_loss(model, self._rows, self._collate)
            state.log_history.append({"step": state.global_step, "eval_loss": loss})
            model.train()
