"""A Trainer for batches that several trainings share; each prompt is trained as if it were alone.

One optimizer with separate groups for every prompt is equivalent to one optimizer per prompt: AdamW and similar
optimizers update each parameter independently. Gradient clipping, which does not, is done here prompt by prompt.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from softprompt_zoo.model.optimizer_steps import trained_groups
from softprompt_zoo.training.together.losses import losses_apart
from softprompt_zoo.training.trainer import PromptTrainer

PER_PROMPT = ("loss", "grad_norm", "learning_rate")
"""The numbers logged for every prompt in every step, as `loss/NAME` and so on."""


class SharedTrainer(PromptTrainer):
    """Trains all prompts of a model in shared batches.

    A prompt whose loss or gradient is not finite has diverged: it stays as it was before that step and takes no part
    in further steps. The other prompts are not affected.
    """

    def __init__(
        self, rates: Mapping[str, float], clip_to: float, validate: Callable[[Any], float] | None, **arguments: Any
    ) -> None:
        """Set up the training.

        Args:
            rates: Learning rate of every prompt, in the order of `model.prompts`.
            clip_to: Largest norm of a prompt's gradient; 0 for no limit.
            validate: Measures the validation loss with the active prompt; `None` for no validation.
            **arguments: Arguments of Trainer. `max_grad_norm` has to be 0, and the data set needs one item per step.
        """
        super().__init__(**arguments)
        self.rates = dict(rates)
        self.clip_to = clip_to or math.inf
        self.validate = validate
        self._diverged: set[str] | None = None
        self._losses: list[Tensor] = []
        self._last: dict[str, dict[str, float]] = {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader with one batch per step, in order."""
        steps: Any = self.train_dataset
        loader: DataLoader[Any] = self.accelerator.prepare(DataLoader(steps, 1, collate_fn=self.data_collator))
        return loader

    @property
    def diverged(self) -> set[str]:
        """The prompts that no longer take part; a resumed training finds them in its log."""
        if self._diverged is None:
            self._diverged = {name for name in self.rates if _has_diverged(self.state.log_history, name)}
        return self._diverged

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Compute and clip the gradients of all prompts that have not diverged."""
        self._last = {name: dict.fromkeys(PER_PROMPT, math.nan) for name in self.rates}
        going = [name for name in self.rates if name not in self.diverged]
        self._learn(model, inputs, going)
        if not all(self._is_finite(name) for name in going):
            model.zero_grad()  # non-finite numbers may have reached the gradients of other prompts
            for name in going:
                self._learn(model, inputs, [name])
        for name in going:
            if not self._is_finite(name):
                self.diverged.add(name)
                self._prompts[name].zero_grad()
        return torch.tensor(_mean(last["loss"] for last in self._last.values()), device=self.args.device)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the sum of the losses, whose gradients are those of each prompt's own loss."""
        total, self._losses = losses_apart(model, inputs)
        return total

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log the validation loss of every prompt."""
        if self.validate is None:
            return {}
        losses = {name: self._validation_loss(name, self.validate) for name in self.rates}
        metrics = {"eval_loss": _mean(losses.values()), **{f"eval_loss/{name}": loss for name, loss in losses.items()}}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log a step, with the numbers of every prompt added."""
        if "loss" in logs:
            logs |= {f"{key}/{name}": value for name, last in self._last.items() for key, value in last.items()}
        super().log(logs, *args, **kwargs)

    def _groups(self) -> list[dict[str, Any]]:
        """Split the trained parameters by prompt, learning rate and weight decay."""
        decaying, groups = self._decaying(), []
        for name, rate in self.rates.items():
            for group in trained_groups(self._prompts[name], rate):
                groups += [{**part, "prompt": name} for part in self._split(group, decaying) if part["params"]]
        return groups

    def _learn(self, model: nn.Module, inputs: Mapping[str, Tensor], names: Sequence[str]) -> None:
        """Compute the clipped gradients of some prompts from their rows of the batch."""
        if not names:
            return
        order = list(self.rates)
        indices = torch.tensor([order.index(name) for name in names], device=inputs["prompts"].device)
        rows = torch.isin(inputs["prompts"], indices)
        super().training_step(model, {key: value[rows] for key, value in inputs.items()})
        for name, loss in zip(names, self._losses, strict=True):
            norm = clip_grad_norm_(self._prompts[name].parameters(), self.clip_to)
            numbers = (float(loss), float(norm), self._rate(name))
            self._last[name] = dict(zip(PER_PROMPT, numbers, strict=True))
        self._losses = []

    def _is_finite(self, name: str) -> bool:
        return math.isfinite(self._last[name]["loss"]) and math.isfinite(self._last[name]["grad_norm"])

    def _rate(self, name: str) -> float:
        """Return the learning rate of a prompt in this step."""
        return next(float(group["lr"]) for group in self.optimizer.param_groups if group["prompt"] == name)

    def _validation_loss(self, name: str, validate: Callable[[Any], float]) -> float:
        if name in self.diverged:
            return math.nan
        self._prompts.activate(name)
        return validate(self.model)


def _has_diverged(history: Iterable[Mapping[str, float]], name: str) -> bool:
    """Return whether a prompt has diverged in a logged step."""
    keys = (f"loss/{name}", f"grad_norm/{name}")
    return any(not math.isfinite(entry[key]) for entry in history for key in keys if key in entry)


def _mean(losses: Iterable[float]) -> float:
    """Return the mean of the finite losses."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return statistics.fmean(finite) if finite else math.nan
