"""Writing a prompt as a PEFT adapter, with `peft_fields`, `peft_prefixes` and `peft_modules`.

The plain tokens alone determine the type: tokens at the input embeddings are PEFT's PROMPT_TUNING, keys and values
its PREFIX_TUNING, whichever method trained them. Checked against peft 0.21.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import PluginError, UnsupportedError
from softprompt_zoo.exchange import PeftFiles
from softprompt_zoo.files import peft_fields, peft_folder, peft_modules
from softprompt_zoo.files.damage import check_numbers
from softprompt_zoo.files.peft_folder import ORIGIN_KEY, Origin
from softprompt_zoo.files.peft_prefixes import TENSOR_KEY, flat_prefix
from softprompt_zoo.files.writing import make_directory
from softprompt_zoo.prompt.plain import one_task
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.prompt_set import PromptSet
from softprompt_zoo.prompt.task_heads import copy_head
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def write(own: PromptSet, directory: Path, name: str | None, task_id: int | None = None) -> None:
    """Write one prompt as a PEFT adapter.

    Args:
        own: The model's prompts.
        directory: The directory to write to; created if missing.
        name: The prompt; `None` for the active one.
        task_id: For a prompt with tasks, the one whose tokens are written; `None` for all.

    Raises:
        ValueError: If the prompt does not have that task.
        UnsupportedError: If PEFT cannot hold it; the message says what would be lost. If it holds NaN or infinity.
            Nothing is written.
    """
    files, general, origin = _content(own, name, task_id)
    check_numbers(files.tensors, "the adapter for PEFT")
    _write(make_directory(directory), files, general, origin)


def write_copy(own: PromptSet, directory: Path, active: tuple[str, ...]) -> str | None:
    """Write the active prompt for PEFT next to our own files, which already hold it.

    Args:
        own: The model's prompts.
        directory: Where our own files are.
        active: Names of the prompts that are active in them.

    Returns:
        Why it could not be written; `None` if it was. If a hook fails, a warning is issued.
    """
    if len(active) != 1:
        return f"a PEFT adapter holds one prompt, and the active ones are: {', '.join(active) or 'none'}"
    try:
        content = _content(own, active[0], None)
    except UnsupportedError as error:
        return str(error)
    except Exception as error:  # hooks may raise anything; the prompt is saved, and training must continue
        return _warn_of_no_copy(directory, error)
    try:
        _write(directory, *content)
    except OSError:
        raise
    except Exception as error:  # caused by what the hooks returned
        return _warn_of_no_copy(directory, error)
    return None


def _warn_of_no_copy(directory: Path, error: Exception) -> str:
    origin = "; ".join(getattr(error, "__notes__", ()))
    warnings.warn(
        f"{directory} holds the prompts, which zoo.load reads, but no copy for PEFT: {type(error).__name__}: {error}"
        f"{' (' + origin + ')' if origin else ''}",
        stacklevel=5,
    )
    return f"a hook of its method failed ({type(error).__name__})"


def _content(own: PromptSet, name: str | None, task_id: int | None) -> tuple[PeftFiles, dict[str, Any], Origin]:
    """Return the arguments of `_write`; arguments and errors as in `write`."""
    chosen = _only_active(own) if name is None else name
    prompt = own.prompts[chosen]
    prompt.refuse_weight(f"prompt {chosen!r}", "a PEFT adapter")
    task = peft_fields.task_type(own.architecture, own.backbone)
    with torch.no_grad():
        tokens = prompt.merged_tokens(own.backbone)
        if task_id is not None:
            tokens = one_task(tokens, task_id, chosen)
        peft_modules.check_head(tokens, own.backbone, task, prompt.config.pools_prompt)
        peft_modules.check_task_ids(tokens, task)
        is_whole = not prompt.is_merged and task_id is None
        files = _with_sizes(_expressed(prompt, tokens, own.backbone, is_whole), own.backbone)
    files = _with_head(files, prompt, own.backbone, task)
    origin = Origin(prompt.loaded.name, prompt.loaded.distribution, prompt.loaded.version)
    return files, peft_fields.general(task, own.base_name), origin


def _with_sizes(files: PeftFiles, backbone: Backbone) -> PeftFiles:
    """Add the sizes that PEFT requires to an adapter that is a prompt."""
    if TENSOR_KEY not in files.tensors:
        return files
    layers = next(iter(backbone.layers.values()), ())
    return PeftFiles(peft_fields.with_sizes(files.fields, layers, backbone.hidden_size), files.tensors)


def _only_active(own: PromptSet) -> str:
    if len(own.active) != 1:
        raise UnsupportedError(
            f"a PEFT adapter holds one prompt, but {len(own.active)} are active ({', '.join(own.active) or 'none'}); "
            "name one with name=…, or make them one with zoo.fold"
        )
    return own.active[0]


def _with_head(files: PeftFiles, prompt: Prompt, backbone: Backbone, task: str) -> PeftFiles:
    """Add the prompt's trained head, or a copy of the model's if PEFT expects one."""
    head = prompt.head
    if head is None and peft_modules.needs_head(files, task):
        head = copy_head(backbone.inside.task_head)
    return files if head is None else peft_modules.with_head(files, head.state_dict(), task)


def _expressed(prompt: Prompt, tokens: VirtualTokens, backbone: Backbone, is_whole: bool) -> PeftFiles:
    """Return a whole prompt as its method writes it, or its plain tokens in PEFT's format."""
    files = prompt.call("write_peft", backbone=backbone) if is_whole else None
    if files is None:
        return express(prompt.call("inject", backbone=backbone, tokens=tokens, text=None), backbone)
    if not isinstance(files, PeftFiles):
        raise PluginError(
            f"{prompt.loaded.describe('write_peft')} returned {type(files).__name__}; expected a "
            "softprompt_zoo.PeftFiles, or None"
        )
    return files


def _write(directory: Path, files: PeftFiles, general: dict[str, Any], origin: Origin) -> None:
    """Write a directory that `PeftModel.from_pretrained` loads.

    Args:
        directory: The directory to write to; it must exist.
        files: The adapter.
        general: Fields common to all adapters; those of `files` override them.
        origin: The prompt's method, for users who load it without the method.
    """
    metadata = {ORIGIN_KEY: json.dumps(dataclasses.asdict(origin))}
    tensors = {key: tensor.float() for key, tensor in files.tensors.items()}
    peft_folder.write(directory, {**general, **files.fields}, tensors, metadata)


def express(placement: Placement, backbone: Backbone) -> PeftFiles:
    """Express plain tokens in PEFT's format.

    Args:
        placement: The plain tokens, and how they are placed.
        backbone: Sizes of the model.

    Returns:
        The adapter.

    Raises:
        UnsupportedError: If PEFT cannot hold them.
    """
    tokens = placement.tokens
    if tokens.num_tasks is not None:
        raise UnsupportedError(
            f"PEFT's PROMPT_TUNING holds one task, but this merged prompt has {tokens.num_tasks}; export one with "
            "task=…, or export them all before merging"
        )
    if tokens.at_input is not None:
        return PeftFiles(peft_fields.of_input_tokens(*tokens.at_input.shape), {TENSOR_KEY: tokens.at_input})
    return _prefix_tuning(placement, backbone)


def _check_windows(backbone: Backbone) -> None:
    windows = [layer.window for layer in next(iter(backbone.layers.values())) if layer.window]
    if windows:
        raise UnsupportedError(
            f"PEFT lets a prefix slide out of the window of {windows[0]} tokens, which always_visible=True forbids; "
            "train with always_visible=False"
        )


def _check_is_prefix(placement: Placement, backbone: Backbone) -> None:
    """Refuse what PEFT's PREFIX_TUNING cannot hold."""
    if placement.tokens.gates:
        raise UnsupportedError(
            "PEFT's PREFIX_TUNING shares the text's softmax, which gated tokens do not, as at the site "
            f"{next(iter(placement.tokens.gates))!r}; keep the prompt in our format"
        )
    if placement.tokens.beyond_prefix is not None:
        raise UnsupportedError(f"the prompt has {placement.tokens.beyond_prefix} of PEFT's; keep it in our format")
    if not backbone.takes_cache:
        raise UnsupportedError(
            f"PEFT passes a prefix to the model as past_key_values, which this model ({backbone.model_type}) does not "
            "take: it would fail or be ignored; keep the prompt in our own format"
        )


def _prefix_tuning(placement: Placement, backbone: Backbone) -> PeftFiles:
    _check_is_prefix(placement, backbone)
    prefix = flat_prefix(placement.tokens, backbone)
    if placement.always_visible:
        _check_windows(backbone)
    fields = peft_fields.of_keys_values(len(prefix.rows), prefix.layers, prefix.submodules, prefix.shape)
    return PeftFiles(fields, {TENSOR_KEY: prefix.rows})
