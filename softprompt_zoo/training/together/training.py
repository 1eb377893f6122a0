"""Trainings of prompts on one model, in one process, whose rows share the batches."""

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
    """Train all prompts of a model at once; each becomes what `PromptTrainer` makes of it alone.

    In every step one batch holds the rows of all of them. Each has its own rate, its own order of rows, its own state
    of the optimizer, schedule and clipping. One that diverges does not touch the others; its numbers are NaN then.

    Args:
        model: A model whose prompts are to be trained, each of them started with its own seed.
        arguments: Those of each prompt's own training, by its name. They may differ in `learning_rate`, `seed` and
            `output_dir`, and say a number of steps, `max_steps`.
        rows: The data that all train on.
        collate: Makes a batch with `labels` of some of the rows.
        validate: Measures the validation loss of the active prompt, each time that the arguments say.
        callbacks: What watches the training.
        checkpoint: One of an earlier training of the same prompts, to go on from; they lie in the first `output_dir`.

    Returns:
        What Trainer would have logged of each training alone, steps and validations.

    Raises:
        ValueError: If the arguments differ in more, or are not those of the model's prompts.
        UnsupportedError: If together the prompts would not become what they become alone; nothing is trained then.
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
    """Return the rows of every step, as a Trainer of its own takes them."""
    data: Any = list(rows)
    own = PromptTrainer(
        model=model, args=copy.copy(arguments), train_dataset=data, eval_dataset=data, data_collator=collate
    )
    return first_batches(own.get_train_dataloader(), arguments.max_steps)


@torch.no_grad()
def _spoil(prompt: torch.nn.Module) -> None:
    """Make of a prompt what an optimizer makes of it when gradients are no numbers."""
    for parameter in prompt.parameters():
        if parameter.requires_grad:
            parameter.fill_(torch.nan)
