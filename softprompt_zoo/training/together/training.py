"""Trainings of prompts on one model, in one process, with shared batches."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from softprompt_zoo.model.attachment import prompts_of
from softprompt_zoo.training.together.fits import check_alike, check_step
from softprompt_zoo.training.together.histories import history_of
from softprompt_zoo.training.together.rows import SharedBatches, SharedCollator, first_batches
from softprompt_zoo.training.together.trainer import SharedTrainer
from softprompt_zoo.training.trainer import PromptTrainer

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, TrainingArguments


def train_together(
    model: "PreTrainedModel",
    arguments: "Mapping[str, TrainingArguments]",
    rows: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    *,
    validate: Callable[[Any], float] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint: "Path | None" = None,
) -> dict[str, list[dict[str, float]]]:
    """Train all prompts of a model at once; each ends as if `PromptTrainer` had trained it alone.

    The batch of every step holds the rows of all prompts. Each prompt has its own learning rate, order of rows,
    optimizer state, schedule and gradient clipping. One that diverges does not affect the others; its parameters are
    NaN afterwards.

    Args:
        model: A model with the prompts to train, each initialized with its own seed.
        arguments: Arguments of each prompt's training, by its name. They may differ in `learning_rate`, `seed` and
            `output_dir`, and must set `max_steps`.
        rows: The data that all prompts train on.
        collate: Turns rows into a batch with `labels`.
        validate: Measures the validation loss of the active prompt, whenever the arguments ask for an evaluation.
        callbacks: Trainer callbacks.
        checkpoint: Checkpoint of an earlier training of the same prompts to resume from; checkpoints are in the first
            `output_dir`.

    Returns:
        What Trainer would have logged for each training alone: steps and validations.

    Raises:
        ValueError: If the arguments differ in other fields, or do not belong to the model's prompts.
        UnsupportedError: If the prompts would not be the same as when trained alone; nothing is trained then.
    """
    prompts = prompts_of(model, "train")
    check_alike(arguments, prompts.keys())
    shared = copy.copy(next(iter(arguments.values())))
    steps = SharedBatches([_order(model, own, rows, collate) for own in arguments.values()])
    shared_collate = SharedCollator(rows, collate)
    check_step(model, shared_collate([steps[0]]))
    clip_to, batch_size = shared.max_grad_norm, shared.train_batch_size
    shared.max_grad_norm, shared.per_device_train_batch_size = 0.0, 1
    trainer = SharedTrainer(
        {name: own.learning_rate for name, own in arguments.items()},
        clip_to,
        validate,
        model=model,
        args=shared,
        train_dataset=steps,
        eval_dataset=steps,
        data_collator=shared_collate,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    for name in trainer.diverged:
        _spoil(prompts[name])
    return {name: history_of(trainer.state.log_history, name, len(rows), batch_size) for name in arguments}


def _order(
    model: "PreTrainedModel", arguments: "TrainingArguments", rows: Sequence[Any], collate: Callable[..., Any]
) -> list[list[int]]:
    """Return the rows of every step in the order that the prompt's own Trainer would take them."""
    data: Any = list(rows)
    own = PromptTrainer(
        model=model, args=copy.copy(arguments), train_dataset=data, eval_dataset=data, data_collator=collate
    )
    return first_batches(own.get_train_dataloader(), arguments.max_steps)


@torch.no_grad()
def _spoil(prompt: torch.nn.Module) -> None:
    """Fill a prompt with NaN, as an optimizer would if its gradients were NaN."""
    for parameter in prompt.parameters():
        if parameter.requires_grad:
            parameter.fill_(torch.nan)
