"""Candidates other than prompts leave the model as it was."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from softprompt_zoo.files.writing import write_tensors
from softprompt_zoo.trial.examination import examine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.comparison.bench import Bench


@contextlib.contextmanager
def frozen(model: "PreTrainedModel") -> Iterator[None]:
    """Freeze all parameters of a model within the block, and restore `requires_grad` afterwards.

    Args:
        model: The model.
    """
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])


@contextlib.contextmanager
def head_to_train(bench: "Bench") -> Iterator[nn.ModuleDict]:
    """Give candidates other than prompts the task head to train along within the block, as prompts do.

    Args:
        bench: The model and its objective. The head's values are restored afterwards.

    Yields:
        The head's modules; empty if the objective needs no head.
    """
    asks = bench.objective.options.get("train_head", False)
    head = nn.ModuleDict(examine(bench.model)[0].inside.task_head if asks else {})
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    try:
        yield head
    finally:
        head.load_state_dict(before)


@contextlib.contextmanager
def unmarked(model: "PreTrainedModel") -> Iterator[None]:
    """Remove attributes that other libraries add to a model within the block, such as PEFT's config."""
    attributes = {*vars(model)}
    try:
        yield
    finally:
        for name in {*vars(model)} - attributes:
            delattr(model, name)


def save_head(head: nn.ModuleDict, folder: Path) -> None:
    """Save the task head that was trained along, if there is one."""
    if head:
        write_tensors(folder / "head.safetensors", head.state_dict(), {})
