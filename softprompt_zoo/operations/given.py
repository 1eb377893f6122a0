"""Prompts as users pass them, attached or saved, and their plain tokens."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.saved_sizes import check_sizes
from softprompt_zoo.errors import CheckpointError, UnsupportedError
from softprompt_zoo.files.start_folders import saved_prompt
from softprompt_zoo.model.attachment import attached_prompts
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens
from softprompt_zoo.trial.examination import examine

GivenPrompt = Prompt | str | os.PathLike[str]
"""A prompt, such as `model.prompts[name]`, or the folder of a saved one."""


@dataclasses.dataclass(frozen=True)
class Given:
    """One prompt passed by a user."""

    what: str
    """Its name in messages."""
    prompt: Prompt
    tokens: VirtualTokens
    """Its plain tokens in eval mode, copies without gradient."""
    placement: Placement
    """Its placement, for the options in it."""


@torch.no_grad()
def read_given(
    prompts: Sequence[tuple[str, Any]], model: PreTrainedModel | None = None
) -> tuple[list[Given], Backbone, Any]:
    """Read prompts for one model. Nothing is changed.

    Args:
        prompts: For each, its name in messages, and a prompt or the folder of a saved one.
        model: The model that they are for, with or without prompts; by default that of the first prompt with one.

    Returns:
        The prompts, the sizes of the model, and the model's prompts, if any.

    Raises:
        TypeError: If one is neither a prompt nor a folder.
        ValueError: If no model is given and none of the prompts has one.
        CheckpointError: If a folder holds no prompt.
        BackboneMismatchError: If one was made for a model of different sizes.
        UnsupportedError: If one has several tasks, or a folder holds several prompts.
    """
    for what, prompt in prompts:
        if not isinstance(prompt, Prompt | str | os.PathLike):
            raise TypeError(
                f"{what} is {type(prompt).__name__}; expected model.prompts[name] or the folder of a saved prompt"
            )
    backbone, model_prompts = _model_of(prompts, model)
    return [_read(what, prompt, backbone) for what, prompt in prompts], backbone, model_prompts


def _model_of(prompts: Sequence[tuple[str, Any]], model: Any) -> tuple[Backbone, Any]:
    """Return the sizes of the model that prompts are for, and its own prompts, if any."""
    if model is not None:
        return _of_model(model)
    for _, prompt in prompts:
        if isinstance(prompt, Prompt) and prompt.backbone is not None:
            return prompt.backbone, prompt.model_prompts
    asked = ", ".join(what for what, _ in prompts)
    raise ValueError(f"none of the prompts is on a model ({asked}); say which model they are for: model=…")


def _of_model(model: Any) -> tuple[Backbone, Any]:
    own = attached_prompts(model)
    return (examine(model)[0], None) if own is None else (own.backbone, own)


def check_alike(given: Sequence[Given]) -> None:
    """Refuse prompts that do not have the same kind of tokens.

    Args:
        given: Some prompts.

    Raises:
        UnsupportedError: If one is at different places than the first: embeddings, sites, or layers.
    """
    first = given[0]
    for other in given[1:]:
        if other.tokens.where != first.tokens.where:
            places = f"{other.what} is at the {other.tokens.where}, but {first.what} at the {first.tokens.where}"
            raise UnsupportedError(f"{places}; give prompts of one kind")
        if other.tokens.outline != first.tokens.outline:
            raise UnsupportedError(
                f"{other.what} has tokens at different layers than {first.what}; give prompts of one kind"
            )


def _saved(what: str, folder: Path, backbone: Backbone) -> Prompt:
    if not folder.is_dir():
        raise CheckpointError(f"{what} is {str(folder)!r}, which is not a folder; expected what save_pretrained wrote")
    return saved_prompt(folder, backbone, what)


def _read(what: str, given: Any, backbone: Backbone) -> Given:
    prompt = given if isinstance(given, Prompt) else _saved(what, Path(given), backbone)
    if prompt.backbone is not None:
        check_sizes(prompt.backbone.sizes(), backbone.sizes(), what)
    own = prompt.backbone or backbone
    tokens = prompt.merged_tokens(own)
    if tokens.num_tasks is not None:
        raise UnsupportedError(
            f"{what} is a prompt with {tokens.num_tasks} tasks; export the one you want, "
            "zoo.export(model, folder, task=…), and give that folder"
        )
    return Given(what, prompt, tokens, prompt.place(own))


def check_idle_task(task: int | None, prompts: Iterable[Prompt]) -> None:
    """Refuse a task if none of the prompts has tasks."""
    if task is not None and all(prompt.config.tasks is None for prompt in prompts):
        raise ValueError(f"task is {task!r}, but the prompts have no tasks; leave it out")
