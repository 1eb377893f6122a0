"""What a folder says about its prompts and their base model, and loading both in one call."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from softprompt_zoo.errors import CheckpointError, UnsupportedError, first_line
from softprompt_zoo.files.formats import find_directory, format_of
from softprompt_zoo.files.saved_config import SavedConfig
from softprompt_zoo.operations.load_and_export import load
from softprompt_zoo.prompt.task_heads import find_heads
from softprompt_zoo.trial.stacks import find_stacks

CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's name of a task, and the class of transformers models for it."""
PLACES = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
"""Options of `from_pretrained` that say where a model's files are."""


def read_config(
    directory: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> SavedConfig:
    """Read what a folder says about its prompts. No model is needed, and no tensor of a prompt is read.

    Args:
        directory: As in `load`.
        revision: As in `load`.
        token: As in `load`.

    Returns:
        The description.

    Raises:
        CheckpointError: If it holds no prompt, or its index or config is damaged.
        HubError: If it is a repository that cannot be fetched.
    """
    path = find_directory(directory, revision, token)
    return format_of(path).describe(path)


def load_model(
    directory: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    trainable: bool = False,
    pools_prompt: bool = False,
    prompt_revision: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load the model that saved prompts were trained on, and the prompts onto it.

    Args:
        directory: As in `load`.
        base: Name or path of the model; by default the one named in the folder.
        trainable: As in `load`.
        pools_prompt: As in `load`.
        prompt_revision: Branch, tag or commit of the prompts' repository on the hub; `revision` is the model's.
        **options: For the model's `from_pretrained`, such as `dtype` and `device_map`; a `token` is for the prompts,
            too. Code that comes with a model is never run.

    Returns:
        The model in eval mode, with the prompts that were active. If PEFT saved an embedding table or layers
        with them, those are in the model.

    Raises:
        CheckpointError: If the folder is damaged or names no base model, or the model cannot be loaded.
        UnsupportedError: If the model's class is not part of transformers, or `load` refuses the prompts.
        ValueError: If `trust_remote_code` is given.
        ZooError: As `load` does.
    """
    _check_runs_no_code(options)
    path = find_directory(directory, prompt_revision, options.get("token"))
    config = read_config(path)
    source = config.base_model if base is None else os.fspath(base)
    if source is None:
        raise CheckpointError(f"{path} does not say which model its prompts are for; name it with base=…")
    model = _load_base(config, source, path, options)
    _put_weights(model, format_of(path).model_weights(path))
    return load(model, path, trainable=trainable, pools_prompt=pools_prompt)


def _load_base(config: SavedConfig, source: str, path: Path, options: Mapping[str, Any]) -> PreTrainedModel:
    try:
        loaded = _class(config, source, options).from_pretrained(source, **{**options, "trust_remote_code": False})
    except UnsupportedError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the model {source!r}, for which the prompts in {path} were trained, cannot be loaded "
            f"({first_line(error)}); name another location with base=…"
        ) from error
    model: PreTrainedModel = loaded.eval()
    return model


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, PreTrainedModel)


def _class(config: SavedConfig, source: str, options: Mapping[str, Any]) -> Any:
    """Find the model's class in transformers, from the task or the architecture named in the folder."""
    if config.task_type in CLASSES:
        kind = getattr(transformers, CLASSES[config.task_type])
        if _has_class(kind, source, options):
            return kind
    name = config.architecture or _architecture(source, options)
    kind = getattr(transformers, name, None)
    if not _is_model(kind) and name != "AutoModel":
        raise UnsupportedError(
            f"the prompts are for a model of the class {name!r}, which transformers lacks; load the model, then the "
            "prompts with zoo.load"
        )
    return kind


def _has_class(kind: Any, source: str, options: Mapping[str, Any]) -> bool:
    """Return whether an auto class of transformers may load a model: that of causal ones has none that read images."""
    try:
        return type(AutoConfig.from_pretrained(source, **_where(options))) in kind._model_mapping
    except OSError:  # it finds more than a config, such as an adapter's base, and says what is missing
        return True


def _where(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that say where a model's files are."""
    return {**{name: options[name] for name in PLACES if name in options}, "trust_remote_code": False}


def _architecture(source: str, options: Mapping[str, Any]) -> str:
    """Return the class named in a model's own folder."""
    found = AutoConfig.from_pretrained(source, **_where(options)).architectures
    return found[0] if found else "AutoModel"


def _known(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights for which a model has a parameter outside its heads."""
    heads = find_heads(model, [stack.module for stack in find_stacks(model)[1].values()])
    return {key: weights[key] for key in _parameters(model).keys() & weights if key.partition(".")[0] not in heads}


@torch.no_grad()
def _put_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Load the weights that PEFT saved into a model, except for its heads, which come with the prompt."""
    known = _known(model, weights)
    if not known:
        return
    _resize_table(model, known)
    own = _parameters(model)
    for key, tensor in known.items():
        if own[key].shape == tensor.shape:  # `load` reports what does not fit
            own[key].copy_(tensor)
    model.config._name_or_path = ""  # it is no longer the model of that name


def _resize_table(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Resize the vocabulary to its size in saved weights."""
    table: Any = model.get_input_embeddings().weight
    own = _parameters(model)
    rows = next((tensor.shape[0] for key, tensor in weights.items() if own[key] is table), table.shape[0])
    if rows != table.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _check_runs_no_code(options: Mapping[str, Any]) -> None:
    given = options.get("trust_remote_code")
    if given:
        raise ValueError(
            f"trust_remote_code is {given!r}, but load_model runs no code from files; load the model, then the prompts"
        )
