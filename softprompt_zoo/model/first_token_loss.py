"""The loss of a text's first token, which the last token of an input-level prompt predicts."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.shapes import Bool, Shaped
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.positions import given_cache, is_beginning, past_length


def wants_first_label(model: Any, call: Call, kwargs: dict[str, Any]) -> bool:
    """Return whether the head should predict the first text token from an input-level prompt's last token."""
    is_language_model = model.prompts.backbone.kind.is_causal and model.get_output_embeddings() is not None
    return is_language_model and _labels_all(kwargs) and any(call.ends_in_input_tokens())


def _labels_all(kwargs: dict[str, Any]) -> bool:
    """Return whether there are labels for a text from its first token on, and logits for all of it."""
    labels, to_keep = kwargs.get("labels"), kwargs.get("logits_to_keep", 0)
    if not isinstance(labels, Tensor) or labels.ndim != 2 or kwargs.get("shift_labels") is not None:
        return False
    keeps_all = isinstance(to_keep, int) and to_keep == 0
    return keeps_all and is_beginning(past_length(given_cache(kwargs)))


def with_first_label(call: Call, kwargs: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
    """Shift the labels by one position, where the stack's hook puts the prompt's last hidden state.

    `Trainer` divides by the number of labels in all accumulated batches, without counting first ones. So each
    batch is weighted by its other labels, as in `share_of_step`: accumulated batches equal one large batch if they have
    the same share of first labels (one batch, rows of one length, no first labels), and come close otherwise.
    """
    labels = kwargs["labels"]
    mask = kwargs.get("attention_mask")
    first = torch.zeros(labels.shape[0], dtype=torch.long, device=labels.device)
    if isinstance(mask, Tensor) and mask.ndim in (2, 4):
        first = (mask if mask.ndim == 2 else _sees_itself(mask)).to(labels.device).long().argmax(dim=1)
    shifted = functional.pad(labels, (1, 0), value=-100)
    has_tail = call.per_row(call.ends_in_input_tokens(), labels.device)[:, 0].expand(labels.shape[0])
    # Without a prompt's prediction, or after padding, nothing predicts the first column.
    shifted[:, 1] = torch.where(has_tail & (first == 0), shifted[:, 1], -100)
    kwargs = {**kwargs, "labels": shifted}
    counted = kwargs.get("num_items_in_batch")
    if counted is not None:
        own = (shifted != -100).sum(dim=0)
        rest = own[2:].sum()  # Trainer counts labels[..., 1:]
        batches = torch.where(rest > 0, torch.as_tensor(counted, device=rest.device) / rest.clamp(min=1), 1.0)
        kwargs["num_items_in_batch"] = counted + own[1] * batches
    return dataclasses.replace(call, first_index=first), kwargs


def _sees_itself(mask: Shaped[Tensor, "rows _ length key_length"]) -> Bool[Tensor, "rows length"]:
    """Distinguish tokens from padding, `(rows, length)`, by a 4-D mask that is boolean or added to the scores."""
    seen = mask if mask.dtype == torch.bool else mask == 0
    return seen[:, 0, :, : seen.shape[2]].diagonal(dim1=1, dim2=2)
