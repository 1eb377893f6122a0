"""Parts of the model itself that PEFT saves next to a prompt: heads, embedding tables, layers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import BackboneMismatchError, UnsupportedError
from softprompt_zoo.exchange import PeftFiles
from softprompt_zoo.files.peft_fields import CAUSAL, FEATURES, SEQ2SEQ
from softprompt_zoo.files.peft_prefixes import TENSOR_KEY
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

HEAD_PREFIX = "base_model."
WORD_TASKS = (CAUSAL, SEQ2SEQ)
CLASSES_TASK = "SEQ_CLS"
QUESTIONS_TASK = "QUESTION_ANS"
POOLED_TASKS = (CLASSES_TASK, QUESTIONS_TASK, "TOKEN_CLS")
WITHOUT_TASK_IDS = (FEATURES, QUESTIONS_TASK)
"""Tasks whose classes in PEFT do not pass `task_ids` on to a prompt."""


def needs_head(files: PeftFiles, task_type: str) -> bool:
    """Return whether PEFT expects a task head in the adapter, the model's own if none was trained."""
    return task_type in POOLED_TASKS and TENSOR_KEY in files.tensors


def with_head(files: PeftFiles, head: Mapping[str, Tensor], task_type: str) -> PeftFiles:
    """Add a head to an adapter.

    Args:
        files: The adapter. Not changed.
        head: Its tensors, `<module>.…` as in the model.
        task_type: PEFT's name of the model's task.

    Returns:
        The adapter with the head.

    Raises:
        UnsupportedError: If PEFT has no place for it.
    """
    if task_type not in (*POOLED_TASKS, *WORD_TASKS) or TENSOR_KEY not in files.tensors:
        raise UnsupportedError(
            f"PEFT keeps a trained head with prompts of the tasks {', '.join(POOLED_TASKS + WORD_TASKS)} only, not "
            f"with {files.fields['peft_type']} of {task_type}; keep the prompt in our own format"
        )
    names = list(dict.fromkeys(key.split(".")[0] for key in head))
    tensors = {**files.tensors, **{HEAD_PREFIX + key: tensor for key, tensor in head.items()}}
    return PeftFiles({**files.fields, "modules_to_save": names}, tensors)


def split_head(tensors: Mapping[str, Tensor], backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate an adapter's tensors from those of the model itself that PEFT saved.

    Args:
        tensors: PEFT's tensors. Not changed.
        backbone: Sizes and parts of the model.

    Returns:
        The adapter's tensors; and those of the heads that come with the prompt, `<module>.…` as in the model. Tensors
        that the model has with the same values are in neither: PEFT adds its tables after the vocabulary was resized.

    Raises:
        UnsupportedError: If it has a module that the model lacks.
        BackboneMismatchError: If its weights for the layers or the embedding table differ from the model's.
    """
    head, rest = {}, {}
    for key, tensor in tensors.items():
        name = key.removeprefix(HEAD_PREFIX)
        if _is_of_adapter(key, TENSOR_KEY in tensors):
            rest[key] = tensor
        elif name.partition(".")[0] in backbone.inside.heads:
            head[name] = tensor
        else:
            _check_same(name, tensor, backbone)
    is_trained = backbone.inside.task_head or not _has_all(backbone, head)
    return rest, head if is_trained else {}


def _is_of_adapter(key: str, is_prompt: bool) -> bool:
    """Return whether a tensor belongs to the adapter itself; weight adapters name places inside the model."""
    return not key.startswith(HEAD_PREFIX) or (not is_prompt and key.startswith(f"{HEAD_PREFIX}model."))


def _has_all(backbone: Backbone, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the model has parameters of these names with the same values."""
    return all(_is_same(backbone.inside.own_parameter(name), tensor) for name, tensor in tensors.items())


def of_model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the model that PEFT saved next to a prompt, by their names in the model."""
    if TENSOR_KEY not in tensors:
        return {}
    return {key.removeprefix(HEAD_PREFIX): t for key, t in tensors.items() if key.startswith(HEAD_PREFIX)}


def _check_same(name: str, tensor: Tensor, backbone: Backbone) -> None:
    own = backbone.inside.own_parameter(name)
    if own is None:
        raise UnsupportedError(
            f"the adapter carries a trained task head or another module ({HEAD_PREFIX}{name}) that this model "
            f"lacks; it has {', '.join(backbone.inside.heads) or 'no head'}; load it onto a model of the class it was "
            "trained with"
        )
    if own.shape != tensor.shape:
        raise BackboneMismatchError(
            f"the adapter carries {name!r} {tuple(tensor.shape)} of the model it was trained on, but here it is "
            f"{tuple(own.shape)}; if that is the embedding table, first resize the vocabulary with "
            f"model.resize_token_embeddings({tensor.shape[0]})"
        )
    if not _is_same(own, tensor):
        raise BackboneMismatchError(
            f"the adapter carries {name!r} of the model it was trained on, with values that differ from this model's; "
            f"PEFT would overwrite them, but a prompt here does not; write them into the model before you load the "
            f"prompt (model.get_parameter({name!r}).data.copy_(…) with the file's {HEAD_PREFIX + name!r}), or let "
            "zoo.load_model load the base and the prompt"
        )


def _is_same(own: Tensor | None, tensor: Tensor) -> bool:
    if own is None or own.shape != tensor.shape or own.is_meta:
        return False
    return torch.equal(own.detach(), tensor.to(own.device, own.dtype))


def check_head(tokens: VirtualTokens, backbone: Backbone, task_type: str, pools_prompt: bool) -> None:
    """Refuse prompts for which PEFT would read a virtual token in the head, fail, or not scale the text.

    Args:
        tokens: The plain tokens.
        backbone: Sizes of the model.
        task_type: PEFT's name of the model's task.
        pools_prompt: Whether a classifier reads a virtual token here too.

    Raises:
        UnsupportedError: If PEFT would.
    """
    if backbone.kind.has_two_texts and task_type in POOLED_TASKS:
        raise UnsupportedError(
            f"PEFT cannot run a prompt under the {task_type} head of an encoder-decoder: it fails, or gives the "
            "decoder a different text; keep the prompt in our own format"
        )
    if tokens.at_input is not None:
        _check_scale(backbone)
        _check_pooling(backbone, task_type, pools_prompt)


def check_task_ids(tokens: VirtualTokens, task_type: str) -> None:
    """Refuse prompts with tasks, of which rows choose one by `task_ids`, if PEFT does not pass these on.

    Args:
        tokens: The plain tokens.
        task_type: PEFT's name of the model's task.

    Raises:
        UnsupportedError: If it does not.
    """
    if tokens.num_tasks is not None and task_type in WITHOUT_TASK_IDS:
        raise UnsupportedError(
            f"PEFT passes no task_ids to the prompts of a model whose task is {task_type}, as this one's is, so it "
            "cannot run a prompt with tasks; export one task as a plain prompt: zoo.export(model, folder, task=…)"
        )


def _check_scale(backbone: Backbone) -> None:
    if backbone.inside.scales_ids:
        raise UnsupportedError(
            f"PEFT would pass embeddings to this model ({backbone.model_type}) that it does not scale, although it "
            "scales those of token ids, so the exported prompt would give different results; use a method on keys and "
            "values"
        )


def _check_pooling(backbone: Backbone, task_type: str, pools_prompt: bool) -> None:
    is_same = pools_prompt and task_type == CLASSES_TASK
    if backbone.kind.has_head_over_input and task_type in POOLED_TASKS and not is_same:
        raise UnsupportedError(
            f"PEFT would pool or label a virtual token under this {task_type} head, so the exported prompt "
            "would give different results; use a method on keys and values"
            f"{', or train with pools_prompt=True' if task_type == CLASSES_TASK else ''}"
        )
