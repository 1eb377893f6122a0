"""The loss of self-study: predictions with the cartridge against predictions with the whole document."""

import torch
from torch import Tensor


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, top_k: int, count: "int | Tensor | None"
) -> Tensor:
    """Cross-entropy of the student against the teacher's `top_k` words, at each position that predicts a label.

    Args:
        student: `(rows, length, vocab)`, with gradients.
        teacher: `(rows, length, vocab)`.
        labels: `(rows, length)`, -100 where nothing is predicted. The first has no prediction.
        top_k: Number of words compared; as in the reference, their probabilities are not normalized to sum to one.
        count: Number of labels in all batches of the optimizer's step, if the trainer counted them.

    Returns:
        A scalar: the sum over the labels, divided by `count` or, without it, by their number.
    """
    keep = labels[:, 1:] != -100
    dtype = torch.promote_types(student.dtype, torch.float32)
    predicted = student[:, :-1][keep].to(dtype)
    wanted = teacher[:, :-1][keep].to(dtype).log_softmax(-1)
    log_p, words = wanted.topk(min(top_k, wanted.shape[-1]))
    log_q = predicted.gather(-1, words) - predicted.logsumexp(-1, keepdim=True)
    total = -(log_p.exp() * log_q).sum()
    return total / (keep.sum().clamp(min=1) if count is None else count)
