"""How far a student is from its teacher: pieces of losses for methods that distil, per `TrainingStep`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.training_step import TrainingStep

IGNORED = -100
"""Label that transformers' losses skip."""


def logit_divergence(step: TrainingStep, teacher: Any, temperature: float) -> Tensor:
    """Compare what teacher and student predict where there is a label.

    Args:
        step: The student's forward.
        teacher: What `step.run` returned.
        temperature: Divides both logits; the result is not scaled by it.

    Returns:
        The mean of KL(teacher || student), a scalar; zero without labels.
    """
    student, other, labels = step.output.logits, teacher.logits, step.inputs["labels"].to(step.output.logits.device)
    if step.predicts_next:
        student, other, labels = student[:, :-1], other[:, :-1], labels[:, 1:]
    log_student = functional.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(other.float() / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return _mean(divergence, labels != IGNORED)


def hidden_distance(step: TrainingStep, teacher: Any) -> Tensor:
    """Compare the hidden states of teacher and student at the text, for virtual positions are in no output.

    Args:
        step: The student's forward.
        teacher: What `step.run` returned.

    Returns:
        The mean squared difference over positions, layers and features, a scalar; of an encoder-decoder the sum
        of both stacks'.
    """
    student, inputs = step.output, step.inputs
    mask = inputs.get("attention_mask")
    if student.get("encoder_hidden_states") is None:
        return _mean_square(student.hidden_states, teacher.hidden_states, mask)
    decoder_mask = inputs.get("decoder_attention_mask")
    if decoder_mask is None and inputs.get("decoder_input_ids") is None:
        decoder_mask = inputs["labels"] != IGNORED
    return _mean_square(student.encoder_hidden_states, teacher.encoder_hidden_states, mask) + _mean_square(
        student.decoder_hidden_states, teacher.decoder_hidden_states, decoder_mask
    )


def share_of_step(step: TrainingStep) -> Tensor | float:
    """Return this batch's share of an optimizer's step, by which a mean over the batch is to be multiplied.

    Args:
        step: The student's forward.

    Returns:
        Its labels over those of all batches whose gradients are added up, as `Trainer` counts them; else one.
    """
    counted = step.inputs.get("num_items_in_batch")
    return 1.0 if counted is None else (step.inputs["labels"] != IGNORED).sum() / counted


def _mean_square(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
    # The first are the embeddings of the text, which no prompt changes.
    pairs = zip(student[1:], teacher[1:], strict=True)
    squares = [(one.float() - other.float()).pow(2).mean(dim=-1) for one, other in pairs]
    return _mean(torch.stack(squares).mean(dim=0), mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of the values that a mask of the same shape shows, zero if it shows none."""
    if mask is None or mask.shape != values.shape:
        return values.mean()
    seen = values[mask.to(values.device).bool()]
    return seen.sum() / max(seen.numel(), 1)
