"""A causal model's predictions for the labeled tokens of a text, including its first one."""

import torch
from torch import Tensor

from softprompt_zoo.exchange import TrainingStep
from softprompt_zoo.methods.parts.demonstrations import IGNORED
from softprompt_zoo.shapes import Float, Int


def labeled_predictions(
    step: TrainingStep, labels: Int[Tensor, "rows length"]
) -> tuple[Float[Tensor, "targets vocab"], Int[Tensor, " targets"]]:
    """Find the logits of labeled tokens.

    Args:
        step: The forward.
        labels: The labels; -100 where nothing is learned.

    Returns:
        Their logits and their ids.

    Raises:
        ValueError: If there is no label.
    """
    rest = labels[:, 1:] != IGNORED
    logits, targets = step.output.logits[:, :-1][rest], labels[:, 1:][rest]
    before = step.first_logits()
    if before is not None:
        first = labels[:, 0][labels[:, 0] != IGNORED]
        logits, targets = torch.cat([before.expand(len(first), -1), logits]), torch.cat([first, targets])
    if not len(targets):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} has no token to learn, all are {IGNORED}; label the target of each "
            "row, as model.prompts[name].config.encode does"
        )
    return logits, targets


def share_of_step(step: TrainingStep, least: int = 0) -> Float[Tensor, ""] | float:
    """Return this batch's share of an optimizer's step, to multiply a mean over the batch by.

    Args:
        step: The forward.
        least: The minimum count of this batch's labels, if the mean covers more than those.

    Returns:
        Its labels divided by those of all accumulated batches, as counted by `Trainer`; otherwise one.
    """
    counted = step.inputs.get("num_items_in_batch")
    if counted is None:
        return 1.0
    labels = step.inputs["labels"][..., 1:] if step.predicts_next else step.inputs["labels"]
    own: Tensor = (labels != IGNORED).sum().clamp(min=least).to(step.loss.device)
    return own / torch.as_tensor(counted, device=own.device).clamp(min=1)
