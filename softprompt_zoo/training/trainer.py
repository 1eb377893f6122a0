"""Transformers' Trainer with the learning rates of the methods, and the Trainer that `train` uses."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback

from softprompt_zoo.backbone.peft_layers import model_inside
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.method import Method
from softprompt_zoo.model.attachment import prompts_of
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.model.untrained import nothing_trained
from softprompt_zoo.training.arguments import run_arguments
from softprompt_zoo.training.evaluation import Evaluator
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PromptTrainer(Trainer):
    """Transformers' `Trainer`, except that every parameter is trained at the rate that its method asks for.

    Most methods ask for a single rate, the `learning_rate` of the arguments. Other parameters, for example those of
    LoRA, are trained at that rate as well. An optimizer that is passed as `optimizers` is used unchanged.
    """

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer that the arguments name, with the groups of `model.prompts.parameter_groups`."""
        if self.optimizer is None:
            cls, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = self._groups()
            if not groups:
                raise UnsupportedError(nothing_trained(self._prompts, list(self._prompts.active)))
            self.optimizer: Any = cls(groups, **options)
        return self.optimizer

    @property
    def _prompts(self) -> Prompts:
        inside: Any = model_inside(self.model)
        prompts: Prompts = inside.prompts if hasattr(inside, "prompts") else prompts_of(inside, "train")
        return prompts

    def _groups(self) -> list[dict[str, Any]]:
        """Group trained parameters by rate and, like Trainer, by weight decay; empty groups are left out."""
        groups = self._prompts.parameter_groups(self.args.learning_rate)
        decaying = self._decaying()
        parts = [part for group in [*groups, self._others(groups)] for part in self._split(group, decaying)]
        return [part for part in parts if part["params"]]

    def _others(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the group of the trained parameters that are in none of the groups."""
        others = {id(parameter): parameter for parameter in self.model.parameters() if parameter.requires_grad}
        for parameter in itertools.chain.from_iterable(group["params"] for group in groups):
            others.pop(id(parameter), None)
        return {"params": [*others.values()]}

    def _decaying(self) -> set[int]:
        names = set(self.get_decay_parameter_names(self.model))
        return {id(parameter) for name, parameter in self.model.named_parameters() if name in names}

    def _split(self, group: dict[str, Any], decaying: set[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split a group into parameters with and without weight decay."""
        parts: dict[bool, list[Any]] = {True: [], False: []}
        for parameter in group["params"]:
            parts[id(parameter) in decaying].append(parameter)
        decays = {"weight_decay": self.args.weight_decay, **group, "params": parts[True]}
        return decays, {"weight_decay": 0.0, **group, "params": parts[False]}


class RunTrainer(PromptTrainer):
    """Validates like the table of results: the loss is a mean over labels, not over batches."""

    def __init__(self, evaluator: Evaluator, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.evaluator = evaluator

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
    rows: Any,
    evaluator: Evaluator,
    callbacks: Sequence[TrainerCallback],
) -> RunTrainer:
    """Create the Trainer of a run.

    Args:
        model: The model with the prompt to train.
        method: Its method, whose recipe fills in what `settings` leave open.
        settings: The run, with every number set.
        rows: The training rows, tokenized: a list or a stream.
        evaluator: The evaluator for the validation.
        callbacks: Callbacks of the Trainer.

    Returns:
        The Trainer.
    """
    stopping = [] if settings.early_stopping is None else [EarlyStoppingCallback(settings.early_stopping)]
    trainer = RunTrainer(
        evaluator,
        model=model,
        args=run_arguments(method, settings),
        train_dataset=rows,
        eval_dataset=evaluator.rows,
        data_collator=evaluator.objective.collate,
        callbacks=[*stopping, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
