"""A model's task head: its modules, and copies of them for a prompt to train."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from softprompt_zoo.backbone.offloading import check_head
from softprompt_zoo.backbone.peft_layers import plain_copy
from softprompt_zoo.errors import BackboneMismatchError


def find_heads(model: Any, stacks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Find the modules after a model's last layer: its children outside the backbone that have parameters.

    Args:
        model: A transformers model.
        stacks: The modules of its stacks.

    Returns:
        The modules of a task head or a language model head, by name.
    """
    heads = dict(model.named_children())
    for module in _backbone(model, stacks):
        heads = {name: head for name, head in heads.items() if head is not module}
    return {name: head for name, head in heads.items() if next(head.parameters(), None) is not None}


def _backbone(model: Any, stacks: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the children of a model that are not heads."""
    if model.base_model is not model:
        return [model.base_model]
    if model.config.is_encoder_decoder:  # T5ForQuestionAnswering has its stacks as children, and no model around them
        return [*stacks, model.get_input_embeddings()]
    return list(model.children())


def task_head(model: Any, heads: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return a model's heads if they are for a task; a language model head is not."""
    return {} if model.get_output_embeddings() is not None else dict(heads)


def copy_head(modules: Mapping[str, nn.Module]) -> nn.ModuleDict | None:
    """Copy a task head, for a prompt to train.

    Args:
        modules: The model's own modules, which PEFT may have wrapped. Not changed.

    Returns:
        Trainable copies by name, in float32 at least, with the current values of an adapter on them merged; `None`
        if there are no modules.

    Raises:
        UnsupportedError: If PEFT cannot merge an adapter on one of them, or one is offloaded.
    """
    copies = {}
    for name, module in modules.items():
        check_head(name, module)
        dtype = torch.promote_types(dtype_of(module), torch.float32)
        copies[name] = plain_copy(module, dtype).requires_grad_()
    return nn.ModuleDict(copies) if copies else None


def copy_saved_head(names: Iterable[str], modules: Mapping[str, nn.Module], where: str) -> nn.ModuleDict | None:
    """Copy those modules of a model's task head that a saved prompt has trained.

    Args:
        names: Names of the modules.
        modules: The model's own heads. Not changed.
        where: Where the prompt was read, for messages.

    Returns:
        The copies, as from `copy_head`.

    Raises:
        BackboneMismatchError: If the model lacks one of them.
    """
    chosen = {}
    for name in names:
        if name not in modules:
            raise BackboneMismatchError(
                f"{where} has a trained task head {name!r}, but this model has {', '.join(modules) or 'none'}; use it "
                "with a model of the class that it was trained with"
            )
        chosen[name] = modules[name]
    return copy_head(chosen)


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's numbers; float32 if it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
