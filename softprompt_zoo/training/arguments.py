"""Transformers' arguments of a run, and what they are checked for before a model is loaded."""

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
"""One may be half written when the process is killed."""
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""What transformers calls it, the newest name first."""
RECIPE_ARGUMENTS = {"warmup_steps": "warmup_steps", "schedule": "lr_scheduler_type", "weight_decay": "weight_decay"}
"""What transformers calls a setting for which a recipe has a number; the recipe's is used where there is none."""


def run_arguments(method: Method, settings: Settings, **changes: Any) -> "TrainingArguments":
    """Make the arguments of a run's Trainer.

    Args:
        method: The method, whose recipe is used where `settings` leave a choice.
        settings: The run, with every number set.
        **changes: Arguments that are to be others.

    Returns:
        The arguments of this process, which has its share of a step's rows.
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
    """Return what has layers computed twice, under its newest name."""
    if not settings.gradient_checkpointing:
        return {}
    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {next(name for name in CHECKPOINTING if name in names): True}


def _best(settings: Settings) -> dict[str, Any]:
    """Return what early stopping needs: to know the best evaluation, and to go back to its checkpoint."""
    if settings.early_stopping is None:
        return {}
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,
    }


def rows_at_once(settings: Settings) -> int:
    """Return how many rows one process reads in one forward pass.

    Args:
        settings: The run, with every number set.

    Raises:
        ValueError: If a step's rows cannot be shared out equally.
    """
    rows, parts, share = int(settings.batch_size or 1), settings.gradient_accumulation_steps, processes.count()
    if rows % (parts * share):
        raise ValueError(
            f"batch_size is {rows}, the rows of a step, which {share} processes with {parts} parts each cannot share "
            f"equally; give a multiple of {parts * share}"
        )
    return rows // (parts * share)


def check_choices(settings: Settings) -> None:
    """Refuse what transformers would refuse when the model is loaded.

    Args:
        settings: The run, with every number set.

    Raises:
        ValueError: If there is no such schedule, or nothing of that name to report to.
        UnsupportedError: If the schedule needs more than a run gives, or what is reported to is not installed.
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
