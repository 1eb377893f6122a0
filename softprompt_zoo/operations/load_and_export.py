"""Operations on all of a model's prompts: load, merge, export."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from softprompt_zoo.backbone.peft_layers import acting_adapters, model_inside
from softprompt_zoo.errors import CheckpointError, PromptExistsError, UnsupportedError
from softprompt_zoo.files import peft_export, peft_folder, prompt_folder, weight_adapters
from softprompt_zoo.files.formats import find_directory, format_of, read_folder
from softprompt_zoo.model.attachment import attach_or_add, attached_prompts, detach, prompts_of
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.operations.export_embeddings import export_embeddings
from softprompt_zoo.operations.export_kv import export_keys_values
from softprompt_zoo.operations.export_vocabulary import export_vocabulary
from softprompt_zoo.operations.fold import combination_of
from softprompt_zoo.operations.pooled_heads import check_pooling
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.token_checks import check_ranges, check_shared_room
from softprompt_zoo.sites.prompts_argument import check_combination
from softprompt_zoo.trial.examination import examine


def load(
    base: PreTrainedModel,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    trainable: bool = False,
    pools_prompt: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> PreTrainedModel:
    """Attach saved prompts to a model and activate those that were active.

    Args:
        base: The model, or a `PeftModel`; it may have prompts already. Frozen and changed in place. PEFT adapters that
            were saved with them are added to it; if it already has one of that name, the saved weights are loaded into
            it. Its other adapters and its prompts stay trainable as before.
        directory: What `save_pretrained` or `export` wrote, or a PEFT prompt adapter: a folder, or the name of a
            repository on the Hugging Face Hub, of which only the prompt is downloaded. A local folder of that name
            takes precedence.
        name: Name of the prompt on this model, if the directory holds only one; by default its saved name, which
            is `"default"` for PEFT's adapters.
        trainable: Whether to train further: the adapters that are loaded, and the prompts that were trainable when they
            were saved, or all if none was or the files do not say. Otherwise all are frozen.
        pools_prompt: For a PEFT prompt at the input embeddings of an encoder's classifier: whether the head reads the
            first virtual token, as it does in PEFT, instead of the text's first token.
        revision: Branch, tag or commit of a repository; its main branch by default.
        token: Your access token for the Hub; by default the one stored by `hf auth login`.

    Returns:
        The same model.

    Raises:
        CheckpointError: If the directory is missing, truncated, corrupt or foreign. Nothing is changed.
        HubError: If it is not a folder, and the Hub cannot be reached, has no such repository or revision, denies
            access, or the repository holds no prompt. Nothing is changed.
        BackboneMismatchError: If it was made for a model with different sizes. Nothing is changed.
        UnknownMethodError: If it needs a plugin that is not installed. Nothing is changed.
        UnsupportedError: If it cannot work on this model. Nothing is changed.
        PromptExistsError: If the model already has a prompt of that name. Nothing is changed.
        ValueError: If `name` is not allowed, or the directory holds several prompts; or if a revision is passed for a
            folder. Nothing is changed.
    """
    path = find_directory(directory, revision, token)
    own = attached_prompts(base)
    backbone, stacks = examine(base) if own is None else (own.backbone, {})
    prompts, active = _renamed(*read_folder(path, backbone, pools_prompt), name, path)
    adapted = format_of(path).adapters(path)
    _check_fit(Prompts(backbone) if own is None else own, prompts, active, path)
    _set_trainable(list(prompts.values()), trainable)
    if adapted:
        model = model_inside(base)
        weight_adapters.check(model, adapted, path)
        with weight_adapters.taken_off_on_error(model, adapted):
            weight_adapters.put(model, adapted, path, trainable)
            if own is None:
                backbone, stacks = examine(base)  # some of its layers have been replaced
    model_prompts = attach_or_add(base, backbone, stacks, prompts)
    if pools_prompt:
        _check_pooling(base, next(iter(prompts)), was_attached=own is not None)
    model_prompts.choose(active)
    return base


def _set_trainable(prompts: list[Prompt], trainable: bool) -> None:
    """Freeze prompts, or train those further that were trainable when they were saved; all if none was."""
    trained = [prompt for prompt in prompts if prompt.is_trained] or prompts
    for prompt in prompts:
        prompt.requires_grad_(trainable and prompt in trained)


def _check_fit(model_prompts: Prompts, prompts: Mapping[str, Prompt], active: tuple[str, ...], path: Path) -> None:
    """Refuse prompts that cannot be added to those of a model, before the model is changed."""
    check_shared_room({name: prompts[name] for name in active}, model_prompts.backbone)
    check_ranges(prompts, model_prompts.backbone, f"in {path}")
    _check_names(model_prompts, prompts, path)


def _check_pooling(base: PreTrainedModel, name: str, was_attached: bool) -> None:
    """Try an attached prompt, and remove it again if the head does not read it as PEFT does."""
    model: Any = model_inside(base)
    try:
        check_pooling(model, name)
    except UnsupportedError:
        if was_attached:
            model.prompts.remove(name)
        else:
            detach(base)
        raise


def _renamed(
    prompts: dict[str, Prompt], active: tuple[str, ...], name: str | None, path: Path
) -> tuple[dict[str, Prompt], tuple[str, ...]]:
    """Return the prompts and active names of a folder, with its only prompt under the name that the user chose."""
    if name is None:
        return prompts, active
    if len(prompts) != 1:
        raise ValueError(
            f"name is {name!r}, but {path} holds {len(prompts)} prompts ({', '.join(map(repr, prompts))}); leave name "
            "out to load them under their own names"
        )
    [prompt] = prompts.values()
    return {name: prompt}, tuple(name for _ in active)


def _check_names(prompts: Prompts, names: Iterable[str], path: Path) -> None:
    try:
        for name in names:
            prompts.check_name(name)
    except PromptExistsError as error:
        raise PromptExistsError(
            f"{path} cannot be loaded: {error}; a directory with one prompt is loaded under another name with "
            "zoo.load(…, name=…)"
        ) from error


@torch.no_grad()
def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Drop what is only needed for training: every prompt is reduced to its plain tokens, with the same outputs.

    Args:
        model: A model with prompts. Changed in place.

    Returns:
        The same model.

    Raises:
        UnsupportedError: If it has no prompts.
    """
    prompts = prompts_of(model, "merge")
    merged = {name: prompt.merged_tokens(prompts.backbone) for name, prompt in prompts.items()}
    for name, tokens in merged.items():
        prompt = prompts[name]
        is_trained = prompt.is_trained
        prompt.merge_into(tokens)
        prompt.requires_grad_(is_trained)
    return model


def export(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    *,
    to: str = "peft",
    name: str | Sequence[str] | None = None,
    task: int | None = None,
    tokenizer: Any = None,
) -> None:
    """Write prompts for another library or engine.

    - `"peft"`: an adapter that `PeftModel.from_pretrained` loads. It holds only the prompt, so a model with an active
      LoRA or the like is refused.
    - `"vocabulary"`: an ordinary checkpoint and tokenizer in which every virtual token is a special token that is
      never generated, for any engine. Causal models, prompts at the input embeddings.
    - `"embeddings"`: the bare embeddings, as safetensors and numpy files. Prompts at the input embeddings.
    - `"kv"`: the keys and values of one prefix, as safetensors, for engines that keep a cache of them; several prompts
      become one, as in `zoo.fold`. Causal models.

    No format stores the positions of a prompt that was trained in slots inside the text: PEFT puts it in front.

    Args:
        model: A model with prompts. Not changed.
        directory: The folder to write; created if missing. For all but `"peft"` it must be missing or empty, and
            appears whole or not at all.
        to: One of the above.
        name: The prompt, or several for all but `"peft"`; by default the active ones.
        task: The task to write, as a plain prompt, of prompts with several; `"peft"` can hold all of them.
        tokenizer: The model's tokenizer, which `"vocabulary"` needs. Not changed.

    Raises:
        TypeError: If `name` is neither a name nor a list of names, or `"vocabulary"` gets no tokenizer.
        ValueError: If `to` is none of these, the directory is not empty, or the prompt does not have that task.
        UnknownPromptError: If there is no prompt of that name.
        CheckpointError: If an adapter for PEFT would replace another one that is not a prompt, or lie next to what
            `save_pretrained` wrote.
        UnsupportedError: If the format cannot hold the prompt; says what would be lost. Nothing is written.
    """
    if to not in EXPORTS:
        raise ValueError(f"to is {to!r}; expected one of {', '.join(map(repr, EXPORTS))}")
    prompts = prompts_of(model, "export")
    names = None if name is None else check_combination(name, prompts.keys(), "name")
    EXPORTS[to](model, Path(directory), _Wanted(names, task, tokenizer))


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """The options of an export."""

    names: tuple[str, ...] | None
    """The prompts; `None` for the active ones."""
    task: int | None
    tokenizer: Any


def _write_peft(model: Any, directory: Path, wanted: _Wanted) -> None:
    names = wanted.names
    if names is not None and len(names) != 1:
        raise UnsupportedError(
            f"a PEFT adapter holds one prompt, but name has {len(names)}; name one, or combine them with zoo.fold"
        )
    _refuse_adapters(model)
    _check_place(directory)
    peft_export.write(prompts_of(model, "export").saved(), directory, None if names is None else names[0], wanted.task)


def _write_vocabulary(model: Any, directory: Path, wanted: _Wanted) -> None:
    export_vocabulary(model, directory, wanted.tokenizer, wanted.names, wanted.task)


def _write_embeddings(model: Any, directory: Path, wanted: _Wanted) -> None:
    export_embeddings(model, directory, wanted.names, wanted.task)


def _write_keys_values(model: Any, directory: Path, wanted: _Wanted) -> None:
    prompts = prompts_of(model, "export")
    names = combination_of(prompts, wanted.names, wanted.task)
    export_keys_values(model, directory, {name: prompts[name] for name in names}, wanted.task)


EXPORTS: dict[str, Callable[[Any, Path, _Wanted], None]] = {
    "peft": _write_peft,
    "vocabulary": _write_vocabulary,
    "embeddings": _write_embeddings,
    "kv": _write_keys_values,
}
"""The writer of each format."""


def _check_place(directory: Path) -> None:
    if prompt_folder.is_there(directory):
        raise CheckpointError(
            f"{directory} holds prompts that save_pretrained wrote, which zoo.load would read instead of the export; "
            "give a new folder"
        )
    peft_folder.check_place(directory)


def _refuse_adapters(model: Any) -> None:
    """Refuse a prompt that PEFT would run without the adapters that are active with it."""
    acting = acting_adapters(model_inside(model))
    if acting:
        raise UnsupportedError(
            f"the adapter {acting[0]!r} acts in the model's layers, but PEFT's prompt files would leave it out; merge "
            "it into the weights first (merge_and_unload), switch it off while you export (disable_adapter, "
            "disable_adapters), or keep both with save_pretrained"
        )
