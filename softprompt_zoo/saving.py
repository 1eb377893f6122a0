"""What users do with a model's prompts as a whole: load, merge, export."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from softprompt_zoo import adapters
from softprompt_zoo.checkpoints import read_adapters, read_prompts, write_peft
from softprompt_zoo.errors import CheckpointError, UnsupportedError
from softprompt_zoo.model import attach, inspect_backbone, is_attached
from softprompt_zoo.prompt import MergedTokens
from softprompt_zoo.prompts import Prompts
from softprompt_zoo.tokens import to_tensors

EXPORTS = ("peft",)


def load(base: PreTrainedModel, directory: str | os.PathLike[str], *, trainable: bool = False) -> PreTrainedModel:
    """Attach saved prompts to a model and activate those that were active.

    Args:
        base: The model, or a `PeftModel`; it may have prompts already. Frozen and changed in place. PEFT adapters that
            were saved along are put on it; one of the same name that it has gets the saved numbers.
        directory: What `save_pretrained` wrote, or a PEFT prompt adapter.
        trainable: Whether the prompts can be trained on.

    Returns:
        The same model.

    Raises:
        CheckpointError: If the directory is missing, truncated, corrupt or foreign. Nothing is changed.
        BackboneMismatchError: If it was made for a model of other sizes. Nothing is changed.
        UnknownMethodError: If it needs a plugin that is not installed. Nothing is changed.
        UnsupportedError: If it cannot work on this model. Nothing is changed.
    """
    path = Path(directory)
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; expected what save_pretrained wrote, or a PEFT prompt adapter")
    attached = is_attached(base)
    model: Any = adapters.model_inside(base)
    backbone, stacks = (model.prompts.backbone, {}) if attached else inspect_backbone(base)
    prompts, active = read_prompts(path, backbone)
    adapted = read_adapters(path)
    adapters.check(model, adapted, path)
    for prompt in prompts.values():
        prompt.requires_grad_(trainable)
    host: Any = model.prompts if attached else Prompts(backbone)
    for name in prompts:
        host.check_name(name)
    adapters.put(model, adapted, path, trainable)
    if not attached:
        if adapted:
            backbone, stacks = inspect_backbone(base)  # some of its layers are others now
        attach(base, backbone, stacks, prompts)
    else:
        for name, prompt in prompts.items():
            host.insert(name, prompt)
    model.prompts.activate(*active)
    return base


@torch.no_grad()
def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Drop what only training needs: every prompt becomes its plain tokens, with the same outputs.

    Args:
        model: A model with prompts. Changed in place.

    Returns:
        The same model.

    Raises:
        UnsupportedError: If it has no prompts.
    """
    host = _host(model, "merge")
    merged = {name: prompt.merged_tokens(host.backbone) for name, prompt in host.items()}
    for name, tokens in merged.items():
        prompt = host[name]
        trainable = any(parameter.requires_grad for parameter in prompt.parameters())
        prompt.learned = MergedTokens(to_tensors(tokens)).train(prompt.training)
        prompt.requires_grad_(trainable)
    return model


def export(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    *,
    to: str = "peft",
    name: str | None = None,
    task: int | None = None,
) -> None:
    """Write a prompt in another library's format.

    Args:
        model: A model with prompts.
        directory: Where to; made if missing.
        to: `"peft"`.
        name: The prompt; by default the active one.
        task: Of a prompt with tasks the one to write, as a plain prompt; by default all of them.

    Raises:
        ValueError: If `to` is none of these, or the prompt does not have that task.
        UnsupportedError: If the format cannot hold the prompt; says what would be lost. Nothing is written.
    """
    if to not in EXPORTS:
        raise ValueError(f"to is {to!r}; expected one of {', '.join(map(repr, EXPORTS))}")
    host = _host(model, "export")
    write_peft(host, Path(directory), name, task)


def _host(model: PreTrainedModel, action: str) -> Prompts:
    if not is_attached(model):
        raise UnsupportedError(
            f"{type(model).__name__} has no prompts to {action}; attach one with zoo.get_method(name)(model)"
        )
    host: Prompts = adapters.model_inside(model).prompts
    return host
