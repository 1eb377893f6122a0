"""The loss of each training in a batch that they share: what the model computes of its rows alone."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float
from softprompt_zoo.training.objectives.rows import IGNORED

TOLERANCE = 0.01
"""Of the comparison of two ways to compute one loss, relative; half precision has a resolution of 0.004."""


def losses_apart(model: Any, inputs: Mapping[str, Any]) -> list[Float[Tensor, ""]]:
    """Run the model once, and take the loss of each prompt's rows.

    Args:
        model: The prompted model.
        inputs: A batch with `labels` and `prompts`, the index of each row's prompt; rows of one prompt stand together.

    Returns:
        One loss for each prompt in the batch, in the order in which they come.

    Raises:
        UnsupportedError: If the model's loss is none that can be taken of some of the rows.
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
    return apart.losses or _of_logits(output, inputs["labels"], counts)


class _Apart:
    """Stands for a model's loss function: calls it for the rows of each training."""

    def __init__(self, own: Callable[..., Any], counts: list[int]) -> None:
        self.own = own
        self.counts = counts
        self.losses: list[Float[Tensor, ""]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """Return the sum of the losses, of which each has gradients as if it were alone."""
        for place in range(len(self.counts)):
            given = [self._part(value, place) for value in args]
            self.losses.append(self.own(*given, **{name: self._part(value, place) for name, value in kwargs.items()}))
        return torch.stack(self.losses).sum()

    def _part(self, value: Any, place: int) -> Any:
        """Take the rows of one training out of what has an entry for each row."""
        has_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == sum(self.counts)
        return value.split(self.counts)[place] if has_rows else value


def _of_logits(output: Any, labels: Tensor, counts: list[int]) -> list[Float[Tensor, ""]]:
    """Take the cross-entropy of each training's labels, if that is what the model's own loss is of all of them."""
    logits = output.logits.split(counts)
    losses = [
        functional.cross_entropy(some.flatten(0, -2), own.flatten(), ignore_index=IGNORED)
        for some, own in zip(logits, labels.split(counts), strict=True)
    ]
    weights = torch.stack([(own != IGNORED).sum() for own in labels.split(counts)])
    mean = float((torch.stack(losses).detach() * weights).sum() / weights.sum())
    expected = float(output.loss.detach())
    if abs(mean - expected) > TOLERANCE * max(1.0, abs(expected)):
        raise UnsupportedError(
            f"the model's loss ({expected:.4f}) is not the mean cross-entropy of its labels ({mean:.4f}), so that of "
            "some rows is not known"
        )
    return losses
