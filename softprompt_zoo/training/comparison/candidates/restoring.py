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
        model: The model. Its class, its attributes and its `requires_grad` are afterwards what they were.
    """
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attributes = {*vars(model)}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])
        for name in {*vars(model)} - attributes:
            delattr(model, name)  # PEFT notes its config there
