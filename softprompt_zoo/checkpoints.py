"""Prompts in directories: ours always, PEFT's files beside them where PEFT can express the active prompt."""

import contextlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softprompt_zoo import adapters
from softprompt_zoo.backbone import Backbone
from softprompt_zoo.config import check_not_negative
from softprompt_zoo.discovery import OWN_DISTRIBUTION
from softprompt_zoo.errors import (
    BackboneMismatchError,
    CheckpointError,
    PluginError,
    UnknownMethodError,
    UnsupportedError,
    ZooError,
)
from softprompt_zoo.exchange import PeftFiles, PeftPrompt
from softprompt_zoo.formats import embeddings, native, peft, vocabulary
from softprompt_zoo.formats.files import read_json
from softprompt_zoo.plain_prompts import check_sizes, one_task, plain_prompt
from softprompt_zoo.prompt import MergedTokens, Prompt
from softprompt_zoo.registry import LoadedMethod, registry
from softprompt_zoo.sites.task_heads import copy_head
from softprompt_zoo.tokens import InputTokens, VirtualTokens, to_tensors

if TYPE_CHECKING:
    from softprompt_zoo.prompts import Prompts

TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
"""Ending of a transformers class to PEFT's name of the task; others are feature extraction to PEFT."""


def save(model: Any, directory: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Save prompts, ours always and PEFT's files where PEFT can express the active prompt.

    Args:
        model: The model; PEFT adapters on it are saved along, each in a folder of its own.
        directory: Where to; made if missing. Other files in it are left alone.
        state_dict: The model's state, where the caller gathered it from several devices.

    Raises:
        CheckpointError: If the place is a file, or a folder with a model's weights or another adapter of PEFT's.
            Nothing is written.
        UnsupportedError: If PEFT has put an adapter into the prompts.
    """
    host: Prompts = model.prompts
    if adapters.are_on(host):
        raise UnsupportedError(
            "PEFT has put an adapter into the prompts themselves, which cannot be saved; put the adapter on the model "
            "first and the prompts afterwards, or put it on with model.add_adapter, which leaves prompts alone"
        )
    path = _directory(directory)
    native.check_place(path)
    if not native.is_native(path):  # PEFT's adapter in the root of ours is one that save_pretrained put there
        peft.check_place(path)
    adapted = dict(adapters.parameters(model))
    if state_dict is None:
        tensors = {native.KEY_PREFIX + key: tensor for key, tensor in host.state_dict().items()} | adapted
    else:
        is_ours = {key: key.startswith(native.KEY_PREFIX) or key in adapted for key in state_dict}
        tensors = {key: tensor for key, tensor in state_dict.items() if is_ours[key]}
    records = {name: _record(prompt) for name, prompt in host.items()}
    found = adapters.collect(model, state_dict)
    try:
        if found:
            raise UnsupportedError("PEFT's prompt files have no place for the adapters under the prompt")
        write_peft(host, path, None)
    except UnsupportedError:
        if native.is_native(path):
            peft.remove(path)  # ours, of a prompt that was here before
    folders = adapters.write(path, found)
    native.write(path, native.Index(host.backbone.sizes(), host.active, records, folders), tensors)


def read_prompts(directory: Path, backbone: Backbone) -> tuple[dict[str, Prompt], tuple[str, ...]]:
    """Read saved prompts for a backbone. Nothing is attached.

    Args:
        directory: What `save_pretrained` or `export` wrote, or a PEFT prompt adapter.
        backbone: Sizes of the model.

    Returns:
        The prompts by name, trainable as they were when they were saved, and the names of the active ones.

    Raises:
        CheckpointError: If the directory is missing, truncated, corrupt or foreign.
    """
    if native.is_native(directory):
        return _read_native(directory, backbone)
    if peft.is_peft(directory):
        return {"default": _read_peft(directory, backbone)}, ("default",)
    for kind, is_there in ((vocabulary, vocabulary.is_vocabulary), (embeddings, embeddings.is_embeddings)):
        if is_there(directory):
            found, active = kind.read(directory)
            return {name: _input_prompt(own, backbone, directory) for name, own in found.items()}, active
    raise CheckpointError(
        f"{directory} has neither {native.INDEX_FILE} nor {peft.CONFIG_FILE}; it holds no saved prompt"
    )


def is_saved(directory: Path) -> bool:
    """Say whether `read_prompts` finds prompts in a directory."""
    return any(
        is_there(directory)
        for is_there in (native.is_native, peft.is_peft, vocabulary.is_vocabulary, embeddings.is_embeddings)
    )


def saved_names(directory: Path) -> list[str]:
    """List the names of saved prompts, none of which is read.

    Args:
        directory: As `read_prompts` takes it.

    Returns:
        The names that `read_prompts` gives them; none of a PEFT adapter that is no prompt.

    Raises:
        CheckpointError: If the index is missing or corrupt.
    """
    if native.is_native(directory):
        return list(native.read_index(directory).prompts)
    if peft.is_peft(directory):
        return ["default"] if peft.is_prompt(read_json(directory / peft.CONFIG_FILE)) else []
    return vocabulary.names(directory) if vocabulary.is_vocabulary(directory) else embeddings.names(directory)


def read_adapters(directory: Path) -> dict[str, adapters.Adapter]:
    """Read the PEFT adapters that were on the model when prompts were saved.

    Args:
        directory: What `save_pretrained` wrote, or a PEFT prompt adapter.

    Returns:
        The adapters by name.

    Raises:
        CheckpointError: If one is missing or corrupt.
    """
    return adapters.read(directory, native.read_index(directory).adapters) if native.is_native(directory) else {}


def warn_of_adapters(directory: Path) -> None:
    """Warn that the prompts of a directory, which are read alone, were saved beside PEFT adapters.

    Args:
        directory: What `save_pretrained` wrote, or a PEFT prompt adapter.
    """
    names = list(native.read_index(directory).adapters) if native.is_native(directory) else []
    if names:
        warnings.warn(
            f"{directory} holds the adapter {', '.join(map(repr, names))} beside its prompt, and the prompt alone is "
            "read; on a model without that adapter it gives other results. zoo.load puts both on a model",
            stacklevel=3,
        )


def write_peft(host: "Prompts", directory: Path, name: str | None, task_id: int | None = None) -> None:
    """Write one prompt as a PEFT adapter.

    Args:
        host: The model's prompts.
        directory: Where to; made if missing.
        name: The prompt; `None` for the active one.
        task_id: Of a prompt with tasks the one whose tokens are written; `None` for all.

    Raises:
        ValueError: If the prompt does not have that task.
        UnsupportedError: If PEFT cannot hold it; says what would be lost. Nothing is written.
    """
    if name is None and len(host.active) != 1:
        raise UnsupportedError(
            f"a PEFT adapter holds one prompt, {len(host.active)} are active ({', '.join(host.active) or 'none'}); "
            "name one with name=…, or make them one with zoo.fold"
        )
    prompt = host[name or host.active[0]]
    prompt.refuse_weight(f"prompt {name or host.active[0]!r}", "a PEFT adapter")
    arguments: dict[str, Any] = {"config": prompt.config, "parameters": prompt.learned, "backbone": host.backbone}
    task = _task_type(host)
    with torch.no_grad():
        tokens = prompt.merged_tokens(host.backbone)
        if task_id is not None:
            tokens = one_task(tokens, task_id, name or host.active[0])
        peft.check_head(tokens, host.backbone, task)
        is_whole = not prompt.is_merged and task_id is None
        files = prompt.loaded.call("write_peft", **arguments) if is_whole else None
        _check_type(files, PeftFiles, prompt.loaded, "write_peft")
        if files is None:
            files = peft.express(prompt.loaded.call("inject", **arguments, tokens=tokens), host.backbone, task)
    if prompt.head is not None:
        files = peft.with_head(files, prompt.head.state_dict(), task)
    origin = peft.Origin(prompt.loaded.name, prompt.loaded.distribution, prompt.loaded.version)
    peft.write(_directory(directory), files, task, host.base_name, origin)


def _input_prompt(found: Tensor, backbone: Backbone, directory: Path) -> Prompt:
    if found.ndim != 2 or found.shape[1] != backbone.hidden_size:
        raise BackboneMismatchError(
            f"{directory} holds embeddings of shape {tuple(found.shape)}; this model needs (tokens, "
            f"{backbone.hidden_size}); load it onto the model it was made for"
        )
    return plain_prompt(InputTokens(found.to(torch.promote_types(backbone.dtype, torch.float32))), backbone)


def _read_native(directory: Path, backbone: Backbone) -> tuple[dict[str, Prompt], tuple[str, ...]]:
    index, tensors = native.read(directory)
    check_sizes(index.backbone, backbone, str(directory))
    prompts = {}
    for name, record in index.prompts.items():
        prompts[name] = _restore(name, record, tensors[name], backbone, directory)
    return prompts, index.active


def _restore(
    name: str, record: native.Record, tensors: dict[str, Tensor], backbone: Backbone, directory: Path
) -> Prompt:
    method = registry.lookup_saved(record.method, record.distribution, record.version, str(directory))
    where, saved, now = f"prompt {name!r} in {directory}", f"{record.distribution} {record.version}", method.origin
    versions = "" if saved.strip() == now else f", which was saved with {saved.strip()} and is read with {now},"
    try:
        config = method.config_class.from_options(record.config)
        check_not_negative("weight", record.weight)
        if record.is_merged:
            start = "learned.tensors."
            plain = {key.removeprefix(start): t.to(backbone.device) for key, t in tensors.items() if start in key}
            learned: Any = MergedTokens(plain)
            learned.tokens(backbone)
        else:
            learned = method.make_parameters(config, backbone)
    except (TypeError, ValueError, KeyError, ZooError) as error:
        raise CheckpointError(f"{where}{versions} does not fit its method {record.method!r}: {error}") from error
    prompt = Prompt(method, config, learned, _copy_named_head(tensors, backbone, where))
    expected = {key: tuple(tensor.shape) for key, tensor in prompt.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))[0]
        shapes = f"has shape {found.get(wrong)}; expected {expected.get(wrong)}"
        raise CheckpointError(f"{where}{versions}: tensor {wrong!r} {shapes}")
    prompt.load_state_dict(tensors)
    prompt.weight = record.weight
    return prompt.requires_grad_(bool(record.is_trained))


def _copy_named_head(tensors: Mapping[str, Tensor], backbone: Backbone, where: str) -> nn.ModuleDict | None:
    """Copy those modules of the model's task head that the tensors `head.<module>.…` are for."""
    names = dict.fromkeys(key.split(".")[1] for key in tensors if key.startswith("head."))
    missing = next((name for name in names if name not in backbone.task_head), None)
    if missing is not None:
        raise BackboneMismatchError(
            f"{where} has a trained task head {missing!r}; this model has {', '.join(backbone.task_head) or 'none'}; "
            "load it onto a model of the class it was trained with"
        )
    return copy_head({name: backbone.task_head[name] for name in names})


def _read_peft(directory: Path, backbone: Backbone) -> Prompt:
    fields, tensors, origin = peft.read(directory)
    method = _method_for(fields, origin, directory)
    try:
        tensors, trained = peft.split_head(tensors, backbone)
        found = method.call("read_peft", fields=fields, tensors=tensors, backbone=backbone)
        _check_type(found, PeftPrompt, method, "read_peft")
    except (CheckpointError, UnsupportedError) as error:
        raise type(error)(f"{directory}: {error}") from error
    options = {"train_head": True} if trained else {}
    if found is None:
        adapter = peft.plain(fields, tensors, backbone, directory)
        found = PeftPrompt({"num_virtual_tokens": adapter.num_virtual_tokens, "init": "given"}, tokens=adapter.tokens)
    config = method.config_class.from_options({**found.options, **options})
    if found.state is None:
        plain = {key: t.to(backbone.device).contiguous() for key, t in to_tensors(found.tokens).items()}  # type: ignore[arg-type]
        learned: Any = MergedTokens(plain)
    else:
        learned = method.make_parameters(config, backbone)
    head = _copy_named_head({f"head.{key}": tensor for key, tensor in trained.items()}, backbone, str(directory))
    try:
        if found.state is not None:
            learned.load_state_dict(dict(found.state))
        if head is not None:
            head.load_state_dict(trained)
    except RuntimeError as error:
        raise BackboneMismatchError(f"{directory} does not fit this model: {error}") from error
    prompt = Prompt(method, config, learned, head)
    with torch.no_grad():
        prompt.place(backbone)
    _warn_of_differences(prompt.merged_tokens(backbone), fields.get("task_type"), backbone)
    return prompt


def _check_type(found: object, expected: type, method: LoadedMethod, hook: str) -> None:
    if not isinstance(found, expected | None):
        wanted = f"a softprompt_zoo.{expected.__name__}, or None"
        raise PluginError(f"{method.describe(hook)} returned {type(found).__name__}; expected {wanted}")


def _warn_of_differences(tokens: VirtualTokens, task_type: str | None, backbone: Backbone) -> None:
    if isinstance(tokens, InputTokens) and task_type in peft.POOLED_TASKS and backbone.family == "encoder":
        warnings.warn(
            f"PEFT's {task_type} head pools or labels a virtual token; here the text alone is pooled, so the "
            "results differ from PEFT's",
            stacklevel=4,
        )
    if isinstance(tokens, InputTokens) and backbone.scales_ids:
        warnings.warn(
            "PEFT gives this model embeddings that it does not scale, where it scales those of ids; here the text is "
            "scaled as ever, so the results differ from PEFT's",
            stacklevel=4,
        )


def _method_for(fields: dict[str, Any], origin: peft.Origin | None, directory: Path) -> LoadedMethod:
    peft_type = fields["peft_type"]
    known: dict[str, LoadedMethod] = {}
    # The package's own methods come last and so win: a stranger's plugin adds types, it takes none over.
    for candidate in sorted(registry.candidates().values(), key=lambda c: c.distribution == OWN_DISTRIBUTION):
        with contextlib.suppress(PluginError):
            method = registry.lookup(candidate.name)
            known |= dict.fromkeys(method.peft_types, method)
    if peft_type not in known:
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
        raise UnsupportedError(
            f"no installed method loads PEFT's {peft_type}; installed ones load {', '.join(sorted(known))}"
        )
    return known[peft_type]


def _record(prompt: Prompt) -> native.Record:
    method = prompt.loaded
    return native.Record(
        method=method.name,
        distribution=method.distribution,
        version=method.version,
        is_merged=prompt.is_merged,
        config=prompt.config.to_dict(),
        weight=prompt.weight,
        is_trained=prompt.is_trained,
    )


def _task_type(host: "Prompts") -> str:
    return next((task for ending, task in TASKS.items() if host.architecture.endswith(ending)), "FEATURE_EXTRACTION")


def _directory(directory: str | os.PathLike[str]) -> Path:
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; expected a folder")
    path.mkdir(parents=True, exist_ok=True)
    return path
