"""Self-study's loss: what the cartridge predicts against what the whole document predicts."""

import torch
from torch import Tensor


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, top_k: int, count: "int | Tensor | None"
) -> Tensor:
    """Cross-entropy of the student against the teacher's `top_k` words, at each position that predicts a label.

    Args:
        student: `(rows, length, vocab)`, with gradients.
        teacher: `(rows, length, vocab)`.
        labels: `(rows, length)`, -100 where nothing is to be predicted. The first has no prediction.
        top_k: Words compared; their probabilities are not scaled to sum to one, as in the reference.
        count: Labels of all batches of the optimizer's step, if the trainer counted them.

    Returns:
        A scalar: the sum over the labels, divided by `count`, or by their number.
    """
    keep = labels[:, 1:] != -100
    dtype = torch.promote_types(student.dtype, torch.float32)
    predicted = student[:, :-1][keep].to(dtype)
    wanted = teacher[:, :-1][keep].to(dtype).log_softmax(-1)
    log_p, words = wanted.topk(min(top_k, wanted.shape[-1]))
    log_q = predicted.gather(-1, words) - predicted.logsumexp(-1, keepdim=True)
    total = -(log_p.exp() * log_q).sum()
    return total / (keep.sum().clamp(min=1) if count is None else count)
