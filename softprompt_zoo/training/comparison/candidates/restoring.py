"""What is trained besides prompts leaves the model as it was."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def frozen(model: "PreTrainedModel") -> Iterator[None]:
    """Let no parameter of a model require gradients within the block, and those that did afterwards.

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
def unmarked(model: "PreTrainedModel") -> Iterator[None]:
    """Take off what others note on a model within the block: PEFT its config, accelerate that it prepared it."""
    attributes = {*vars(model)}
    try:
        yield
    finally:
        for name in {*vars(model)} - attributes:
            delattr(model, name)
