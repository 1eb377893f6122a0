"""The `TrainingArguments` of a run, and the checks before a model is loaded."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt_zoo.config.checks import check_choice
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.method import Method
from softprompt_zoo.training import processes
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from transformers import TrainingArguments

KEPT_CHECKPOINTS = 2
"""Two, since one may be incomplete when the process is killed."""
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""Its names in transformers, the newest first."""
RECIPE_ARGUMENTS = {"warmup_steps": "warmup_steps", "schedule": "lr_scheduler_type", "weight_decay": "weight_decay"}
"""Settings that a recipe may fill in, and their names in transformers."""


def run_arguments(method: Method, settings: Settings, **changes: Any) -> "TrainingArguments":
    """Return the arguments of a run's Trainer.

    Args:
        method: The method, whose recipe fills in what `settings` leave open.
        settings: The run, with every number set.
        **changes: Arguments to override.

    Returns:
        The arguments for this process, which processes its share of a step's rows.
    """
    chosen = {theirs: getattr(settings, ours) for ours, theirs in RECIPE_ARGUMENTS.items()}
    chosen = {name: value for name, value in chosen.items() if value is not None} | {
        "learning_rate": settings.learning_rate,
        "max_steps": settings.steps,
        "per_device_train_batch_size": rows_at_once(settings),
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "seed": settings.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": settings.evaluate_every,
        "save_steps": settings.save_every,
        "save_total_limit": KEPT_CHECKPOINTS,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": settings.report_to or "none",
        "output_dir": str(Path(settings.output)),
    }
    return method.training_arguments(**{**chosen, **_best(settings), **_checkpointing(settings), **changes})


def _checkpointing(settings: Settings) -> dict[str, Any]:
    """Return the argument that turns on gradient checkpointing, under its newest name."""
    if not settings.gradient_checkpointing:
        return {}
    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {next(name for name in CHECKPOINTING if name in names): True}


def _best(settings: Settings) -> dict[str, Any]:
    """Return the arguments for early stopping, which finds the best evaluation and returns to its checkpoint."""
    if settings.early_stopping is None:
        return {}
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,
    }


def rows_at_once(settings: Settings) -> int:
    """Return how many rows one process handles in one forward pass.

    Args:
        settings: The run, with every number set.

    Raises:
        ValueError: If the rows of a step cannot be divided equally.
    """
    rows, parts, share = int(settings.batch_size or 1), settings.gradient_accumulation_steps, processes.count()
    if rows % (parts * share):
        raise ValueError(
            f"batch_size is {rows}, the rows of a step, which cannot be divided equally among {share} processes with "
            f"{parts} parts each; give a multiple of {parts * share}"
        )
    return rows // (parts * share)


def check_choices(settings: Settings) -> None:
    """Refuse settings that transformers would refuse only after the model is loaded.

    Args:
        settings: The run, with every number set.

    Raises:
        ValueError: If there is no such schedule, or no integration of that name to report to.
        UnsupportedError: If the schedule needs arguments that a run does not pass, or the integration is not installed.
    """
    rows_at_once(settings)
    if settings.schedule is not None:
        _check_schedule(settings.schedule)
    if settings.report_to is not None:
        _check_report(settings.report_to)


def _check_schedule(name: str) -> None:
    import torch
    from transformers import SchedulerType, get_scheduler

    check_choice("schedule", name, [kind.value for kind in SchedulerType])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=2)
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            f"schedule is {name!r}, which needs more than a run's steps ({error}); give another, such as linear or "
            "cosine, or train in Python with transformers' lr_scheduler_kwargs"
        ) from error


def _check_report(name: str) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        kinds = get_reporting_integration_callbacks(name)
    except ValueError as error:
        raise ValueError(f"report_to is {name!r}; {error}") from error
    for kind in kinds:
        try:
            kind()
        except (RuntimeError, ImportError) as error:
            raise UnsupportedError(f"report_to is {name!r}: {error}") from error
