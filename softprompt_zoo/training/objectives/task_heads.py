"""Task heads: the one that a model comes with, or a new one for the classes of the data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from softprompt_zoo.errors import DataError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base

HEAD_SEED = 0
"""Seed of the initial values of a new head: the base model is the same in every table and resumed run."""


def check_padding(base: "Base") -> None:
    """Refuse a tokenizer that cannot pad rows."""
    if base.tokenizer.pad_token_id is None:
        raise UnsupportedError(
            f"the tokenizer of {base.name} has no padding token and no end-of-sequence token; set "
            "tokenizer.pad_token, save it, and give that folder"
        )


def ordered_classes(base: "Base", auto_class: str, classes: Sequence[str]) -> list[str]:
    """Return the classes in the order of a model's outputs; weights are not needed.

    Args:
        base: The model.
        auto_class: Name of the auto class that has the head.
        classes: The labels of the data.

    Returns:
        The model's own labels if it comes with a head that includes those of the data; else the labels of the data.

    Raises:
        UnsupportedError: If transformers has no such head for the model.
        DataError: If the model's own head is for other classes, or for a different number of them.
    """
    _check_exists(base, auto_class)
    if not has_own_head(base, auto_class):
        return list(classes)
    own = [str(base.config.id2label[index]) for index in sorted(base.config.id2label)]
    if set(classes) <= set(own):
        return own
    if len(own) == len(classes) and own == [f"LABEL_{index}" for index in range(len(own))]:
        return list(classes)
    raise DataError(
        f"the task head of {base.name} is for {len(own)} classes ({', '.join(map(repr, own))}), but the data have "
        f"{len(classes)} ({', '.join(map(repr, classes))}); give data with the model's classes, or a model without a "
        "head, which gets one for the data's"
    )


def has_own_head(base: "Base", auto_class: str) -> bool:
    """Return whether a model was saved with the head of an auto class."""
    return base.architecture.endswith(auto_class.removeprefix("AutoModel"))


def _check_exists(base: "Base", auto_class: str) -> None:
    from transformers.models.auto import modeling_auto

    mapping: Any = vars(modeling_auto)[auto_class]._model_mapping
    if type(base.config) not in mapping:
        kind = auto_class.removeprefix("AutoModelFor")
        raise UnsupportedError(
            f"transformers has no {kind} for {base.name} ({base.config.model_type}); choose a model that has one, or, "
            "if it writes text, --objective label-words"
        )


def with_new_head(base: "Base", auto_class: str, classes: Sequence[str], dtype: str) -> "PreTrainedModel":
    """Load a model with a head for some classes, in eval mode; a new head always has the same initial values."""
    names = dict(enumerate(classes))
    with torch.random.fork_rng():
        torch.manual_seed(HEAD_SEED)
        model = base.load_as(
            auto_class, dtype, id2label=names, label2id={label: index for index, label in names.items()}
        )
    if model.config.pad_token_id is None:  # a decoder's head reads the last token that is not padding
        model.config.pad_token_id = base.tokenizer.pad_token_id
    return model
