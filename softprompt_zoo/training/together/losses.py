"""The loss of each training in a shared batch: what the model computes from the training's rows alone."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float
from softprompt_zoo.training.objectives.rows import IGNORED

TOLERANCE = 0.01
"""Largest relative difference between two ways to compute one loss; half precision has a resolution of 0.004."""


def losses_apart(model: Any, inputs: Mapping[str, Any]) -> tuple[Float[Tensor, ""], list[Float[Tensor, ""]]]:
    """Run the model once, and return the loss of each prompt's rows.

    Args:
        model: The prompted model.
        inputs: A batch with `labels` and `prompts`, the index of each row's prompt; rows of one prompt are adjacent.

    Returns:
        The sum of the losses, whose gradients are those of each loss alone; and the losses of the prompts in the
        batch, in the order of their rows, without gradients.

    Raises:
        UnsupportedError: If the model's loss cannot be computed for some of the rows alone.
    """
    counts = inputs["prompts"].unique_consecutive(return_counts=True)[1].tolist()
    apart = _Apart(model.loss_function, counts)
    had_own = "_loss_function" in vars(model)
    model.loss_function = apart
    try:
        output = model(**inputs)
    finally:
        if had_own:
            model.loss_function = apart.own
        else:
            del model._loss_function
    if apart.total is None:
        return _of_logits(output, inputs["labels"], counts)
    return apart.total, apart.losses


class _Apart:
    """Replaces a model's loss function: calls it separately for the rows of each training.

    The tensors that a loss keeps for its gradients, several float32 copies of the logits, are freed before the next
    loss is computed.
    """

    def __init__(self, own: Callable[..., Any], counts: list[int]) -> None:
        self.own = own
        self.counts = counts
        self.losses: list[Float[Tensor, ""]] = []
        self.total: Float[Tensor, ""] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """Return the sum of the losses."""
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        wanted = [name for name, value in given.items() if self._has_rows(value) and value.requires_grad]
        gradients = [torch.empty_like(given[name]) for name in wanted]
        for place in range(len(self.counts)):
            loss, own = self._loss(given, wanted, place)
            self.losses.append(loss)
            for whole, part in zip(gradients, own, strict=True):
                self._part(whole, place).copy_(part)
        total = torch.stack(self.losses).sum()
        self.total = _Given.apply(total, *gradients, *[given[name] for name in wanted]) if wanted else total
        return self.total

    def _loss(self, given: Mapping[Any, Any], wanted: list[Any], place: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the loss of one training and its gradients with respect to the wanted arguments."""
        parts = {name: self._part(value, place) for name, value in given.items()}
        for name in wanted:
            parts[name] = parts[name].detach().requires_grad_()
        args = [parts.pop(name) for name in given if isinstance(name, int)]
        leaves = [args[name] if isinstance(name, int) else parts[name] for name in wanted]
        loss = self.own(*args, **parts)
        return loss.detach(), torch.autograd.grad(loss, leaves) if leaves else ()

    def _part(self, value: Any, place: int) -> Any:
        """Return one training's rows of a value that has an entry for each row, else the value itself."""
        return value.split(self.counts)[place] if self._has_rows(value) else value

    def _has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == sum(self.counts)


class _Given(torch.autograd.Function):
    """A scalar whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, *tensors: Tensor) -> Tensor:
        """Return the scalar, and keep the gradients; `tensors` are the gradients, then the tensors they belong to."""
        ctx.save_for_backward(*tensors[: len(tensors) // 2])
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, multiplied by that of the scalar."""
        known = ctx.saved_tensors
        return None, *(None for _ in known), *(outer[0].to(one.dtype) * one for one in known)


def _of_logits(output: Any, labels: Tensor, counts: list[int]) -> tuple[Float[Tensor, ""], list[Float[Tensor, ""]]]:
    """Return the cross-entropy of each training's labels, if the model's own loss is that of all labels."""
    logits = output.logits.split(counts)
    losses = [
        functional.cross_entropy(some.flatten(0, -2), own.flatten(), ignore_index=IGNORED)
        for some, own in zip(logits, labels.split(counts), strict=True)
    ]
    known = [loss.detach() for loss in losses]
    weights = torch.stack([(own != IGNORED).sum() for own in labels.split(counts)])
    mean = float((torch.stack(known) * weights).sum() / weights.sum())
    expected = float(output.loss.detach())
    if abs(mean - expected) > TOLERANCE * max(1.0, abs(expected)):
        raise UnsupportedError(
            f"the model's loss ({expected:.4f}) is not the mean cross-entropy of its labels ({mean:.4f}), so the loss "
            "of some of the rows is not known"
        )
    return torch.stack(losses).sum(), known
