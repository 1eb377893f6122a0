"""The Trainer of a run: transformers' own, told how to train a prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, Trainer, TrainerCallback

from softprompt_zoo.method import Method
from softprompt_zoo.training.data import Row
from softprompt_zoo.training.evaluation import Evaluator
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT_CHECKPOINTS = 2
"""One may be half written when the process is killed."""


class PromptTrainer(Trainer):  # type: ignore[misc]
    """Validates as the table does: the loss is a mean over target tokens, not over batches."""

    def __init__(self, evaluator: Evaluator, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.evaluator = evaluator

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Give every parameter the rate that its method asks for."""
        if self.optimizer is None:
            host: Any = self.model.prompts
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options = {"weight_decay": self.args.weight_decay, **options}
            self.optimizer: Any = cls(host.parameter_groups(options.pop("lr")), **options)
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log the loss on the validation rows."""
        metrics = {"eval_loss": self.evaluator.loss(self.model)}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def make_trainer(
    model: "PreTrainedModel",
    method: Method,
    settings: Settings,
    rows: Sequence[Row],
    evaluator: Evaluator,
    callbacks: Sequence[TrainerCallback],
) -> PromptTrainer:
    """Set a run up.

    Args:
        model: The model with the prompt to train.
        method: Its method, whose recipe is used where `settings` leave a choice.
        settings: The run, with every number set.
        rows: What to train on.
        evaluator: What validates.
        callbacks: What watches.

    Returns:
        The Trainer.
    """
    arguments = method.training_arguments(
        str(Path(settings.output)),
        learning_rate=settings.learning_rate,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.evaluate_every,
        save_steps=settings.save_every,
        save_total_limit=KEPT_CHECKPOINTS,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = PromptTrainer(
        evaluator,
        model=model,
        args=arguments,
        train_dataset=list(rows),
        eval_dataset=evaluator.rows,
        data_collator=evaluator.collate,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
