"""The loss of every row."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.training.evaluation import BATCH_SIZE
from softprompt_zoo.training.objectives.rows import IGNORED, R


@torch.no_grad()
def row_losses(model: Any, rows: Sequence[R], collate: Callable[[Sequence[R]], dict[str, Tensor]]) -> list[float]:
    """Measure the mean loss per label of every row.

    Args:
        model: The model; put into eval mode.
        rows: The rows.
        collate: Makes batches of them.

    Returns:
        The losses in nats, in the order of the rows.
    """
    model.eval()
    losses = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    for first in range(0, len(order), BATCH_SIZE):
        places = order[first : first + BATCH_SIZE]
        batch = {name: tensor.to(model.device) for name, tensor in collate([rows[place] for place in places]).items()}
        for place, loss in zip(places, _of_batch(model, batch).tolist(), strict=True):
            losses[place] = loss
    return losses


def _of_batch(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean loss of each row, `(rows,)`.

    Whether a model predicts the label at the same position or at the next one is found by trying: the alternative
    that reproduces the model's own loss is used.
    """
    output = model(**batch)
    logits, labels = output.logits.float(), batch["labels"]
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels, reduction="none")
    ways = [_losses(logits, labels), _losses(logits[:, :-1], labels[:, 1:])]
    return min(ways, key=lambda way: abs(float(_mean(way) - output.loss)))[0]


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss and the number of labels of each row."""
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    counts = (labels != IGNORED).sum(dim=1)
    return losses.sum(dim=1) / counts.clamp(min=1), counts


def _mean(way: tuple[Tensor, Tensor]) -> Tensor:
    losses, counts = way
    return (losses * counts).sum() / counts.sum()
