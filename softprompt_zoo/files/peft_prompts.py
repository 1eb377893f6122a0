"""One prompt as a PEFT adapter, and back: what a PEFT directory says, in our terms."""

import warnings
from pathlib import Path
from typing import Any

import torch

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import (
    CheckpointError,
    PluginError,
    UnknownMethodError,
    UnsupportedError,
)
from softprompt_zoo.exchange import PeftFiles, PeftPrompt
from softprompt_zoo.files import adapter_folder, peft, peft_modules
from softprompt_zoo.files.files import make_directory
from softprompt_zoo.files.saved_prompts import PromptSet, copied
from softprompt_zoo.prompt.fits import fitting, fitting_head
from softprompt_zoo.prompt.plain import one_task
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.task_heads import copy_head
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.tokens.kinds import narrowed

TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
"""Ending of a transformers class to PEFT's name of the task; others are feature extraction to PEFT."""


def write(own: PromptSet, directory: Path, name: str | None, task_id: int | None = None) -> None:
    """Write one prompt as a PEFT adapter.

    Args:
        own: The model's prompts.
        directory: Where to; made if missing.
        name: The prompt; `None` for the active one.
        task_id: Of a prompt with tasks the one whose tokens are written; `None` for all.

    Raises:
        ValueError: If the prompt does not have that task.
        UnsupportedError: If PEFT cannot hold it; says what would be lost. Nothing is written.
    """
    content = _content(own, name, task_id)
    peft.write(make_directory(directory), *content)


def write_copy(own: PromptSet, directory: Path, active: tuple[str, ...]) -> bool:
    """Write the active prompt for PEFT beside our own files, which hold it already.

    Args:
        own: The model's prompts.
        directory: Where our own files are.
        active: Names of the prompts that are active in them.

    Returns:
        Whether it could be written. Of a prompt that PEFT cannot hold nothing is said; of a fault in a hook a warning.
    """
    if len(active) != 1:
        return False
    try:
        content = _content(own, active[0], None)
    except UnsupportedError:
        return False
    except Exception as error:  # whatever a method's hooks raise: the training is saved, and must go on
        return _warn_of_no_copy(directory, error)
    try:
        peft.write(directory, *content)
    except OSError:
        raise
    except Exception as error:  # of what the hooks returned
        return _warn_of_no_copy(directory, error)
    return True


def _warn_of_no_copy(directory: Path, error: Exception) -> bool:
    origin = "; ".join(getattr(error, "__notes__", ()))
    warnings.warn(
        f"{directory} holds the prompts, which zoo.load reads, but no copy for PEFT: {type(error).__name__}: {error}"
        f"{' (' + origin + ')' if origin else ''}",
        stacklevel=5,
    )
    return False


def _content(own: PromptSet, name: str | None, task_id: int | None) -> tuple[PeftFiles, str, str | None, peft.Origin]:
    """Return what `peft.write` takes; arguments and errors as of `write`."""
    if name is None and len(own.active) != 1:
        raise UnsupportedError(
            f"a PEFT adapter holds one prompt, {len(own.active)} are active ({', '.join(own.active) or 'none'}); "
            "name one with name=…, or make them one with zoo.fold"
        )
    prompt = own.prompts[name or own.active[0]]
    prompt.refuse_weight(f"prompt {name or own.active[0]!r}", "a PEFT adapter")
    arguments: dict[str, Any] = {"config": prompt.config, "parameters": prompt.learned, "backbone": own.backbone}
    task = _task_type(own.architecture)
    with torch.no_grad():
        tokens = prompt.merged_tokens(own.backbone)
        if task_id is not None:
            tokens = one_task(tokens, task_id, name or own.active[0])
        peft.check_head(tokens, own.backbone, task, prompt.config.pools_prompt)
        is_whole = not prompt.is_merged and task_id is None
        files = prompt.loaded.call("write_peft", **arguments) if is_whole else None
        _check_type(files, PeftFiles, prompt.loaded, "write_peft")
        if files is None:
            files = peft.express(prompt.loaded.call("inject", **arguments, tokens=tokens), own.backbone, task)
    files = peft.with_sizes(files, own.backbone)
    head = prompt.head
    if head is None and peft_modules.needs_head(files, task):
        head = copy_head(own.backbone.inside.task_head)
    if head is not None:
        files = peft_modules.with_head(files, head.state_dict(), task)
    origin = peft.Origin(prompt.loaded.name, prompt.loaded.distribution, prompt.loaded.version)
    return files, task, own.base_name, origin


def read(directory: Path, backbone: Backbone, pools_prompt: bool = False) -> Prompt:
    """Read a PEFT prompt adapter. Nothing is attached.

    Args:
        directory: What PEFT's `save_pretrained` or our export wrote.
        backbone: Sizes of the model.
        pools_prompt: Whether an encoder's classifier reads a virtual token, as in PEFT.

    Returns:
        The prompt.

    Raises:
        CheckpointError: If a file is missing or corrupt, or the adapter is no prompt.
        BackboneMismatchError: If it was made for a model of other sizes.
        UnknownMethodError: If it needs a method that is not installed.
        UnsupportedError: If it cannot work on this model.
    """
    fields, tensors, origin = peft.read(directory)
    if pools_prompt and fields.get("task_type") != peft_modules.CLASSES_TASK:
        raise UnsupportedError(
            f"pools_prompt is True, and {directory} is of PEFT's task {fields.get('task_type')!r}: it is for "
            f"{peft_modules.CLASSES_TASK} alone, whose heads read one token; leave it out"
        )
    method = _method_for(fields, origin, directory)
    try:
        tensors, trained = peft_modules.split_head(tensors, backbone)
        found = method.call("read_peft", fields=fields, tensors=tensors, backbone=backbone)
        _check_type(found, PeftPrompt, method, "read_peft")
    except (CheckpointError, UnsupportedError) as error:
        raise type(error)(f"{directory}: {error}") from error
    options = ({"train_head": True} if trained else {}) | ({"pools_prompt": True} if pools_prompt else {})
    if found is None:
        adapter = peft.plain(fields, tensors, backbone, directory)
        found = PeftPrompt({"num_virtual_tokens": adapter.num_virtual_tokens, "init": "given"}, tokens=adapter.tokens)
    try:
        config = method.config_class.from_options({**found.options, **options})
    except (TypeError, ValueError) as error:
        path = directory / adapter_folder.CONFIG_FILE
        raise CheckpointError(f"{path} does not fit {method.name!r}: {error}") from error
    if found.state is None:
        learned: Any = copied(narrowed(found.tokens).tensors(), backbone)  # type: ignore[arg-type]
    else:
        learned = method.make_parameters(config, backbone)
    if found.state is not None:
        with fitting(f"{directory} does not fit this model"):
            learned.load_state_dict(dict(found.state))
    head = fitting_head(trained, backbone, str(directory), is_whole=False)
    prompt = Prompt(method, config, learned, head)
    with torch.no_grad():
        prompt.place(backbone)
    _warn_of_differences(prompt, fields.get("task_type"), backbone)
    return prompt


def _check_type(found: object, expected: type, method: LoadedMethod, hook: str) -> None:
    if not isinstance(found, expected | None):
        wanted = f"a softprompt_zoo.{expected.__name__}, or None"
        raise PluginError(f"{method.describe(hook)} returned {type(found).__name__}; expected {wanted}")


def _warn_of_differences(prompt: Prompt, task_type: str | None, backbone: Backbone) -> None:
    tokens = prompt.merged_tokens(backbone)
    is_same = prompt.config.pools_prompt and task_type == peft_modules.CLASSES_TASK
    is_pooled = task_type in peft_modules.POOLED_TASKS and backbone.kind.has_head_over_input
    if tokens.at_input is not None and is_pooled and not is_same:
        advice = "; zoo.load(…, pools_prompt=True) does as PEFT" if task_type == peft_modules.CLASSES_TASK else ""
        warnings.warn(
            f"PEFT's {task_type} head pools or labels a virtual token; here the text alone is pooled, so the "
            f"results differ from PEFT's{advice}",
            stacklevel=4,
        )
    if tokens.at_input is not None and backbone.inside.scales_ids:
        warnings.warn(
            "PEFT gives this model embeddings that it does not scale, where it scales those of ids; here the text is "
            "scaled as ever, so the results differ from PEFT's",
            stacklevel=4,
        )


def _method_for(fields: dict[str, Any], origin: peft.Origin | None, directory: Path) -> LoadedMethod:
    peft_type = fields["peft_type"]
    method = registry.reader_of(peft_type)
    if method is not None:
        return method
    if origin is not None:
        registry.lookup_saved(origin.method, origin.distribution, origin.version, str(directory))
    if peft_type in peft.PACKAGES:
        raise UnknownMethodError(
            f"{directory} is a PEFT adapter of type {peft_type!r}, whose method is not installed; run: pip install "
            f"{peft.PACKAGES[peft_type]}"
        )
    if not peft.is_prompt(fields):
        raise CheckpointError(
            f"{directory} is a PEFT adapter of type {peft_type!r}, which is no prompt of an installed method; "
            "load it with PEFT"
        )
    known = ", ".join(registry.peft_types())
    raise UnsupportedError(f"no installed method loads PEFT's {peft_type}; installed ones load {known}")


def _task_type(architecture: str) -> str:
    return next((task for ending, task in TASKS.items() if architecture.endswith(ending)), "FEATURE_EXTRACTION")
