"""A learning-rate range test: how steps at growing rates change the loss, starting from the initial values.

Source:
    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3. Measuring each batch with the
    initial values as well is ours: the difference removes most of what is particular to a batch.
"""

import contextlib
import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.method import Method
from softprompt_zoo.training.evaluation import Evaluator
from softprompt_zoo.training.settings import Settings
from softprompt_zoo.training.trainer import RunTrainer, make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 49
LOWEST, HIGHEST = 1e-5, 10.0
"""Rates of the first and the last step; eight steps are a factor of ten. Our choice: recipes are in the middle."""
HOPELESS = 2.0
"""The test stops when the loss reaches this multiple of the initial loss. Our choice."""
WIDTH = 1.5
"""Standard deviation, in steps, of the Gaussian weights that smooth the curve. Our choice."""
NOISE = 3.0
"""A fall counts if it exceeds this multiple of the noise. Our choice."""


@dataclasses.dataclass(frozen=True)
class RateCurve:
    """The result of a test."""

    rates: list[float]
    """The rate of each step."""
    losses: list[float]
    """Loss on the next batch after each step, minus the initial loss on that batch; in nats."""

    @property
    def smoothed(self) -> list[float]:
        """The losses, each averaged with its neighbors."""
        return [_mean_around(self.losses, index) for index in range(len(self.losses))]

    @property
    def noise(self) -> float:
        """Standard deviation of the losses around the smoothed ones, up to the lowest smoothed one."""
        rest = [loss - mean for loss, mean in zip(self.losses, self.smoothed, strict=True)][: self.lowest + 1]
        return statistics.pstdev(rest)

    @property
    def lowest(self) -> int:
        """The step after which the smoothed loss is lowest."""
        smoothed = self.smoothed
        return min(range(len(smoothed)), key=smoothed.__getitem__)

    @property
    def has_fallen(self) -> bool:
        """Whether the loss has fallen by more than noise."""
        return -self.smoothed[self.lowest] > NOISE * self.noise

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss falls fastest, to one digit; `None` if it has not fallen."""
        if not self.has_fallen or self.lowest == 0:
            return None
        falls = [after - before for before, after in itertools.pairwise(self.smoothed)][: self.lowest]
        rate = self.rates[min(range(len(falls)), key=falls.__getitem__) + 1]
        return float(f"{rate:.0e}")


def _mean_around(values: Sequence[float], place: int) -> float:
    weights = [math.exp(-(((index - place) / WIDTH) ** 2) / 2) for index in range(len(values))]
    return sum(map(float.__mul__, weights, values)) / sum(weights)


def find_rate(
    model: "PreTrainedModel", method: Method, settings: Settings, rows: Sequence[Any], evaluator: Evaluator
) -> RateCurve:
    """Run steps at growing rates, and undo them.

    Args:
        model: The model with the prompt to train; restored afterwards.
        method: Its method.
        settings: The run, with every number set.
        rows: The rows to train on.
        evaluator: The run's evaluator, used only to make batches.

    Returns:
        The curve; shorter than the test if it stopped early.
    """
    with TemporaryDirectory() as folder, _taken_back(model):
        settings = dataclasses.replace(settings.thrown_away(folder), gradient_accumulation_steps=1)
        trainer = make_trainer(model, method, settings, rows, evaluator, [])
        return _test(trainer, list(itertools.islice(_forever(trainer), STEPS + 1)))


def _forever(trainer: RunTrainer) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from trainer.get_train_dataloader()


@contextlib.contextmanager
def _taken_back(model: "PreTrainedModel") -> Iterator[None]:
    """Restore what is trained, the mode and the random state."""
    prompts: Any = model.prompts
    of_prompts = itertools.chain.from_iterable(prompts[name].buffers() for name in prompts)
    changing = [*(parameter for parameter in model.parameters() if parameter.requires_grad), *of_prompts]
    before, is_training = [tensor.detach().clone() for tensor in changing], model.training
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)
        model.zero_grad()
        model.train(is_training)


def _test(trainer: RunTrainer, batches: Sequence[dict[str, Tensor]]) -> RateCurve:
    """Run the steps; the loss after each is that of the next batch, which the next step computes anyway."""
    model: Any = trainer.model
    model.train()
    batches = [{name: tensor.to(model.device) for name, tensor in batch.items()} for batch in batches]
    with torch.no_grad():
        at_start = [float(model(**batch).loss) for batch in batches]
    hopeless = HOPELESS * statistics.fmean(at_start)
    optimizer, curve = trainer.create_optimizer(), RateCurve([], [])
    ratios = [group["lr"] / trainer.args.learning_rate for group in optimizer.param_groups]
    loss = model(**batches[0]).loss
    for step, (batch, before) in enumerate(zip(batches[1:], at_start[1:], strict=True)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = rate * ratio
        _step(loss, optimizer, trainer.args.max_grad_norm)
        loss = model(**batch).loss
        if not loss.item() < hopeless:  # also catches NaN
            break
        curve.rates.append(rate)
        curve.losses.append(loss.item() - before)
    return curve


def _step(loss: Tensor, optimizer: Any, clip_to: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, clip_to)
    optimizer.step()
