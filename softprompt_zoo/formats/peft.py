"""PEFT's prompt adapters, both ways, without PEFT; the only file that spells its field names.

What can be expressed depends on the plain tokens alone: tokens at the input embeddings are PEFT's
PROMPT_TUNING, keys and values its PREFIX_TUNING, whichever method trained them. Checked against peft 0.21.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone import Backbone
from softprompt_zoo.errors import BackboneMismatchError, CheckpointError, UnsupportedError
from softprompt_zoo.exchange import PeftFiles
from softprompt_zoo.formats.files import check_floating, read_json, read_tensors, write_json, write_tensors
from softprompt_zoo.formats.pickled import read_pickled
from softprompt_zoo.tokens import InputTokens, LayerTokens, Placement, SiteTokens, VirtualTokens, flatten_layers

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
TENSOR_KEY = "prompt_embeddings"
HEAD_PREFIX = "base_model."
SEQ2SEQ = "SEQ_2_SEQ_LM"
ORIGIN_KEY = "softprompt_zoo"
"""In the header of the tensors' file, which PEFT does not look at: what wrote it."""
PACKAGES = {"ADAPTION_PROMPT": "softprompt-zoo-llama-adapter", "CARTRIDGE": "softprompt-zoo-cartridge"}
"""What to install for PEFT's own files of a type that no built-in method reads; our exports say so themselves."""
WORD_TASKS = ("CAUSAL_LM", SEQ2SEQ)
POOLED_TASKS = ("SEQ_CLS", "QUESTION_ANS", "TOKEN_CLS")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The method whose prompt was exported."""

    method: str
    """Canonical name."""
    distribution: str
    """Package that offered it."""
    version: str
    """Version of that package."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a PEFT directory holds."""

    peft_type: str
    """PEFT's name of the method."""
    task_type: str | None
    """PEFT's name of the task."""
    tokens: VirtualTokens
    """The plain tokens."""
    num_virtual_tokens: int


def plain_type(tokens: VirtualTokens) -> str:
    """Name PEFT's type of a prompt that is nothing but such tokens; the method that reads it holds plain ones, too."""
    return "PROMPT_TUNING" if isinstance(tokens, InputTokens) else "PREFIX_TUNING"


def write(directory: Path, files: PeftFiles, task_type: str, base_name: str | None, origin: Origin) -> None:
    """Write a directory that `PeftModel.from_pretrained` loads.

    Args:
        directory: Where to; it must exist.
        files: What they hold.
        task_type: PEFT's name of the model's task.
        base_name: Name or path of the base model, if known.
        origin: The prompt's method, for who loads it without that.
    """
    general = {"task_type": task_type, "inference_mode": True, "revision": None, "auto_mapping": None}
    fields = {**general, "base_model_name_or_path": base_name, **files.fields}
    metadata = {ORIGIN_KEY: json.dumps(dataclasses.asdict(origin))}
    write_tensors(directory / TENSOR_FILE, {key: tensor.float() for key, tensor in files.tensors.items()}, metadata)
    write_json(directory / CONFIG_FILE, fields)


def remove(directory: Path) -> None:
    """Remove an adapter, config first, so that no half of it stays behind."""
    for name in (CONFIG_FILE, TENSOR_FILE):
        (directory / name).unlink(missing_ok=True)


def check_head(tokens: VirtualTokens, backbone: Backbone, task_type: str) -> None:
    """Refuse prompts with which PEFT would look at a virtual token under the head, or not scale the text.

    Args:
        tokens: The plain tokens.
        backbone: Sizes of the model.
        task_type: PEFT's name of the model's task.

    Raises:
        UnsupportedError: If it would.
    """
    if isinstance(tokens, InputTokens) and backbone.scales_ids:
        raise UnsupportedError(
            "PEFT would give this model embeddings that it does not scale, where it scales those of ids, so the "
            "exported prompt would give other results; use a method that works on keys and values"
        )
    if isinstance(tokens, InputTokens) and backbone.family == "encoder" and task_type in POOLED_TASKS:
        raise UnsupportedError(
            f"PEFT would pool or label a virtual token under this {task_type} head, so the exported prompt "
            "would give other results; use a method that works on keys and values"
        )


def express(placement: Placement, backbone: Backbone, task_type: str) -> PeftFiles:
    """Express plain tokens in PEFT's terms.

    Args:
        placement: The plain tokens, and how they are placed.
        backbone: Sizes of the model.
        task_type: PEFT's name of the model's task.

    Returns:
        The adapter.

    Raises:
        UnsupportedError: If PEFT cannot hold them.
    """
    tokens = placement.tokens
    config: dict[str, Any]
    if isinstance(tokens, InputTokens):
        if tokens.embeddings.ndim == 3:
            raise UnsupportedError(
                f"PEFT's PROMPT_TUNING holds one task, this merged prompt has {tokens.embeddings.shape[0]}; export one "
                "with task=…, or export them all before merging"
            )
        count, hidden = tokens.embeddings.shape
        config = {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": count,
            "token_dim": hidden,
            "num_layers": len(next(iter(backbone.layers.values()), ())) or None,
            "num_attention_heads": None,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }
        return PeftFiles(config, {TENSOR_KEY: tokens.embeddings})
    if any(site.gates is not None for site in tokens.sites.values()):
        raise UnsupportedError(
            "PEFT's PREFIX_TUNING shares the text's softmax, which gated tokens do not; keep the prompt in our format"
        )
    if not backbone.takes_cache:
        raise UnsupportedError(
            "PEFT hands a prefix to the model as past_key_values, which this model does not take: it would fail or be "
            "ignored; keep the prompt in our own format"
        )
    flat, layers, shape = _flat_prefix(tokens, backbone)
    if placement.always_visible and any(layer.window for layer in next(iter(backbone.layers.values()))):
        raise UnsupportedError(
            "PEFT lets a prefix slide out of the window, which always_visible=True forbids; "
            "train with always_visible=False"
        )
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": flat.shape[0],
        "token_dim": shape.kv_heads * shape.head_dim,
        "num_attention_heads": shape.kv_heads,
        "num_layers": layers,
        "num_transformer_submodules": 2 if task_type == SEQ2SEQ else 1,
        "encoder_hidden_size": shape.kv_heads * shape.head_dim,
        "prefix_projection": False,
    }
    return PeftFiles(config, {TENSOR_KEY: flat})


def with_head(files: PeftFiles, head: Mapping[str, Tensor], task_type: str) -> PeftFiles:
    """Add a trained head to an adapter.

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


def split_head(
    fields: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take what PEFT saved of the model itself out of an adapter.

    Args:
        fields: PEFT's config. Not changed.
        tensors: PEFT's tensors. Not changed.
        backbone: What is known of the model.

    Returns:
        The other tensors; and those of the heads that the prompt brings along, `<module>.…` as in the model. What the
        model has with the same numbers is in neither: PEFT adds its tables after the vocabulary was resized.

    Raises:
        UnsupportedError: If it has a module that the model lacks.
        BackboneMismatchError: If it has other weights for the layers or the embedding table than the model.
    """
    head, rest = {}, {}
    for key, tensor in tensors.items():
        name = key.removeprefix(HEAD_PREFIX)
        # Adapters of other kinds name places inside the model, `base_model.model.…`.
        if name == key or (name.startswith("model.") and "num_virtual_tokens" not in fields):
            rest[key] = tensor
        elif name.partition(".")[0] in backbone.heads:
            head[name] = tensor
        else:
            _check_same(name, tensor, backbone)
    if not backbone.task_head and all(_is_same(backbone.own_parameter(name), tensor) for name, tensor in head.items()):
        head = {}
    return rest, head


def _check_same(name: str, tensor: Tensor, backbone: Backbone) -> None:
    own = backbone.own_parameter(name)
    if own is None:
        raise UnsupportedError(
            f"the adapter carries a trained task head or another module ({HEAD_PREFIX}{name}) that this model has "
            f"not; it has {', '.join(backbone.heads) or 'no head'}; load it onto a model of the class it was trained "
            "with"
        )
    if own.shape != tensor.shape:
        raise BackboneMismatchError(
            f"the adapter carries {name!r} {tuple(tensor.shape)} of the model it was trained on, and here it is "
            f"{tuple(own.shape)}; if that is the embedding table, bring the vocabulary to the same size first, with "
            f"model.resize_token_embeddings({tensor.shape[0]})"
        )
    if not _is_same(own, tensor):
        raise BackboneMismatchError(
            f"the adapter carries {name!r} of the model it was trained on, with other numbers than this model's; PEFT "
            f"would overwrite them, a prompt here leaves them alone; write them into the model before you load the "
            f"prompt: model.get_parameter({name!r}).data.copy_(…) with the file's tensor {HEAD_PREFIX + name!r}"
        )


def _is_same(own: Tensor | None, tensor: Tensor) -> bool:
    if own is None or own.shape != tensor.shape or own.is_meta:
        return False
    return torch.equal(own.detach(), tensor.to(own.device, own.dtype))


def is_peft(directory: Path) -> bool:
    """Say whether a directory holds a PEFT adapter."""
    return (directory / CONFIG_FILE).is_file()


def check_place(directory: Path) -> None:
    """Refuse a directory where an adapter that is no prompt would be overwritten.

    Args:
        directory: Where a prompt shall be written.

    Raises:
        CheckpointError: If there is one, such as a LoRA.
    """
    if is_peft(directory) and not is_prompt(fields := read_json(directory / CONFIG_FILE)):
        raise CheckpointError(
            f"{directory} holds a PEFT adapter of type {fields.get('peft_type')!r}, which the prompt would replace; "
            "give a new folder"
        )


def is_prompt(fields: Mapping[str, Any]) -> bool:
    """Say whether an adapter's config is that of a prompt; LoRA's and its like are not."""
    return "num_virtual_tokens" in fields or fields.get("peft_type") in PACKAGES


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor], Origin | None]:
    """Read the two files of an adapter.

    Args:
        directory: The directory.

    Returns:
        PEFT's config and tensors; and the method it was exported from, `None` for others' files.

    Raises:
        CheckpointError: If a file is missing or corrupt, or says of no type.
    """
    path = directory / CONFIG_FILE
    fields = read_json(path)
    if not isinstance(fields.get("peft_type"), str):
        raise CheckpointError(f"{path} has the peft_type {fields.get('peft_type')!r}; it is no PEFT adapter")
    if not (directory / TENSOR_FILE).exists():
        if not (directory / PICKLED_FILE).exists():
            raise CheckpointError(f"{directory} has neither {TENSOR_FILE} nor {PICKLED_FILE}; copy it there")
        tensors = read_pickled(directory / PICKLED_FILE)  # PEFT before 0.7
        check_floating(tensors, directory / PICKLED_FILE)
        return fields, tensors, None
    tensors, metadata = read_tensors(directory / TENSOR_FILE)
    check_floating(tensors, directory / TENSOR_FILE)
    origin = None
    if ORIGIN_KEY in metadata:
        with contextlib.suppress(ValueError, TypeError):
            origin = Origin(**json.loads(metadata[ORIGIN_KEY]))
    return fields, tensors, origin


def plain(fields: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone, directory: Path) -> Adapter:
    """Take the plain tokens out of a prompt adapter of any type.

    Args:
        fields: PEFT's config. Not changed.
        tensors: PEFT's tensors. Not changed.
        backbone: Sizes of the model it shall go to.
        directory: Where they were read, for messages.

    Returns:
        Its plain tokens.

    Raises:
        CheckpointError: If they hold no prompt.
        BackboneMismatchError: If it was made for other sizes.
        UnsupportedError: If PEFT itself cannot run it right.
    """
    path = directory / CONFIG_FILE
    count, peft_type = fields.get("num_virtual_tokens"), fields["peft_type"]
    if not isinstance(count, int):
        raise CheckpointError(f"{path} is a PEFT adapter of type {peft_type!r}, which is no prompt; load it with PEFT")
    tensor = tensors.get(TENSOR_KEY)
    if tensor is None or tensor.ndim != 2:
        raise CheckpointError(f"{directory / TENSOR_FILE} has no tensor {TENSOR_KEY!r} of two axes; it is no prompt")
    other = next((key for key in tensors if key != TENSOR_KEY), None)
    if other is not None:
        raise UnsupportedError(
            f"{directory / TENSOR_FILE} carries {other!r} beside the prompt, which no installed method reads; load it "
            "with PEFT"
        )
    tokens: VirtualTokens
    if tensor.shape[1] == backbone.hidden_size and peft_type not in ("PREFIX_TUNING", "CARTRIDGE"):
        tokens = InputTokens(tensor[:count])
    else:
        tokens = _read_prefix(tensor, fields, backbone, path)
    if tensor.shape[0] < count:
        raise CheckpointError(f"{path} says {count} virtual tokens, its tensor has {tensor.shape[0]}")
    return Adapter(peft_type, fields.get("task_type"), tokens, count)


def _flat_prefix(tokens: LayerTokens, backbone: Backbone) -> tuple[Tensor, int, Any]:
    site = "decoder" if backbone.family == "encoder_decoder" else next(iter(backbone.layers))
    others = [name for name in tokens.sites if name != site]
    if others or site not in tokens.sites:
        lost = ", ".join(map(repr, others or tokens.sites))
        raise UnsupportedError(
            f"PEFT can hold a prefix at the site {site!r} only; this one has {lost}; train with sites=({site!r},)"
        )
    shapes = backbone.layers[site]
    if len({size for shape in shapes for size in (shape.key_size, shape.value_size)}) > 1:
        raise UnsupportedError(
            "PEFT cannot hold keys and values of different sizes, in one layer or in several; keep the prompt in our "
            "own format"
        )
    flat = flatten_layers(tokens.sites[site])
    if backbone.family != "encoder_decoder":
        return flat, len(shapes), shapes[0]
    # PEFT repeats an encoder-decoder's rows and takes each layer's pair from every second one: rows 4l and
    # 4l + 1 of twice as many layers reach decoder layer l, the rest is never looked at.
    pairs = flat.unflatten(1, (len(shapes), 2, -1))
    spread = torch.stack([pairs, torch.zeros_like(pairs)], dim=2)
    return spread.flatten(1), 2 * len(shapes), shapes[0]


def _read_prefix(tensor: Tensor, config: dict[str, Any], backbone: Backbone, path: Path) -> VirtualTokens:
    is_seq2seq = backbone.family == "encoder_decoder"
    site = "decoder" if is_seq2seq else next(iter(backbone.layers), "encoder")
    if site not in backbone.layers:
        raise UnsupportedError(f"{path} holds keys and values, which cannot be reached in this model")
    shapes = backbone.layers[site]
    shape = shapes[0]
    layers = config.get("num_layers") or len(shapes)
    if len({size for layer in shapes for size in (layer.key_size, layer.value_size)}) > 1:
        raise UnsupportedError(f"{path} cannot hold this model's keys and values, which differ in size from each other")
    width = shape.kv_heads * shape.head_dim
    if tensor.shape[1] != 2 * layers * width or (not is_seq2seq and layers != len(shapes)):
        raise BackboneMismatchError(
            f"{path} holds keys and values of {tensor.shape[1]} features in {layers} layers; this model needs "
            f"{2 * len(shapes) * width} in {len(shapes)}; load it onto the model it was made for"
        )
    if is_seq2seq and config.get("num_transformer_submodules", 2) == 1:
        raise UnsupportedError(
            f"{path} has num_transformer_submodules=1, with which PEFT lets tokens see later ones; "
            "export it again with 2"
        )
    pairs = tensor.unflatten(1, (2 * layers, shape.kv_heads, shape.head_dim)).permute(1, 2, 0, 3)
    step = 4 if is_seq2seq else 2
    rows = [step * layer % (2 * layers) for layer in range(len(shapes))]
    keys = tuple(pairs[row].contiguous() for row in rows)
    values = tuple(pairs[(row + 1) % (2 * layers)].contiguous() for row in rows)
    return LayerTokens({site: SiteTokens(keys, values)})
