"""Trainings of one method on one model, in one process, whose rows share the batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainerCallback, set_seed

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.method import Method
from softprompt_zoo.model.attachment import detach, is_attached
from softprompt_zoo.training.evaluation import Evaluator
from softprompt_zoo.training.settings import Settings
from softprompt_zoo.training.together.fits import check_alike, check_step
from softprompt_zoo.training.together.histories import history_of
from softprompt_zoo.training.together.rows import SharedBatches, SharedCollator, first_batches
from softprompt_zoo.training.together.trainer import SharedTrainer
from softprompt_zoo.training.trainer import make_trainer, run_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_together(
    model: "PreTrainedModel",
    method: Method,
    runs: Mapping[str, Settings],
    rows: Sequence[Any],
    evaluator: Evaluator,
    folder: Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint: Path | None = None,
) -> dict[str, list[dict[str, float]]]:
    """Train several prompts of a method at once; each becomes what it becomes alone.

    In every step one batch holds the rows of all of them. Each has its own rate, seed, options, start values, order of
    rows, state of the optimizer, schedule and clipping. A training that diverges does not touch the others.

    Args:
        model: The model without prompts. It gets one for each training.
        method: Their method; each run's options come on top of its own.
        runs: The trainings by the names that their prompts get, with every number set. They may differ in
            `learning_rate`, `seed` and `options`.
        rows: The tokenized rows that all train on.
        evaluator: What validates.
        folder: Where checkpoints of all go.
        callbacks: What watches the training.
        checkpoint: One of an earlier training of the same runs, to go on from.

    Returns:
        The history of every training, in the form that `Trainer` logs it alone.

    Raises:
        ValueError: If runs differ in another setting.
        UnsupportedError: If together they would not become what they become alone. The model has no prompts then.
    """
    check_alike(runs)
    if is_attached(model):
        raise UnsupportedError("the model has prompts already; give train_together one without, as zoo.detach leaves")
    try:
        for name, run in runs.items():
            set_seed(run.seed)
            method(model, name=name, **run.options)
        trainer = _trainer(model, method, runs, rows, evaluator, folder, callbacks)
    except Exception:
        if is_attached(model):
            detach(model)
        raise
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    log = trainer.state.log_history
    return {name: history_of(log, name, len(rows), int(run.batch_size or 1)) for name, run in runs.items()}


def _trainer(
    model: "PreTrainedModel",
    method: Method,
    runs: Mapping[str, Settings],
    rows: Sequence[Any],
    evaluator: Evaluator,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> SharedTrainer:
    """Set the training up, and try its first step."""
    settings = next(iter(runs.values()))
    steps = SharedBatches([_order(model, method, run, rows, evaluator) for run in runs.values()])
    collate = SharedCollator(rows, evaluator.objective.collate)
    check_step(model, collate([steps[0]]))
    here: dict[str, Any] = {"output_dir": str(folder), "per_device_train_batch_size": 1, "max_grad_norm": 0.0}
    trainer = SharedTrainer(
        {name: float(run.learning_rate or 0) for name, run in runs.items()},
        clip_to=run_arguments(method, settings).max_grad_norm,
        validate=evaluator.loss,
        model=model,
        args=run_arguments(method, settings, **here),
        train_dataset=steps,
        eval_dataset=evaluator.rows,
        data_collator=collate,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _order(
    model: "PreTrainedModel", method: Method, run: Settings, rows: Sequence[Any], evaluator: Evaluator
) -> list[list[int]]:
    """Return the rows of every step, as the run's own Trainer takes them."""
    loader = make_trainer(model, method, run, rows, evaluator, []).get_train_dataloader()
    return first_batches(loader, int(run.steps or 0))
