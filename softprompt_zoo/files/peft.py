"""PEFT's prompt adapters, both ways, without PEFT; `peft_prefixes` and `peft_modules` have parts of it.

What can be expressed depends on the plain tokens alone: tokens at the input embeddings are PEFT's
PROMPT_TUNING, keys and values its PREFIX_TUNING, whichever method trained them. Checked against peft 0.21.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config import typed
from softprompt_zoo.errors import CheckpointError, UnsupportedError
from softprompt_zoo.exchange import PeftFiles
from softprompt_zoo.files import adapter_folder
from softprompt_zoo.files.adapter_folder import CONFIG_FILE, TENSOR_FILE
from softprompt_zoo.files.numbers import check_floating
from softprompt_zoo.files.peft_modules import CLASSES_TASK, POOLED_TASKS
from softprompt_zoo.files.peft_prefixes import SEQ2SEQ, TENSOR_KEY, flat_prefix, read_prefix
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

ORIGIN_KEY = "softprompt_zoo"
"""In the header of the tensors' file, which PEFT does not look at: what wrote it."""
PACKAGES = {"ADAPTION_PROMPT": "softprompt-zoo-llama-adapter", "CARTRIDGE": "softprompt-zoo-cartridge"}
"""What to install for PEFT's own files of a type that no built-in method reads; our exports say so themselves."""


Count = Annotated[int, typed.integer(1, 2**31 - 1)]


class PromptFields(TypedDict, total=False):
    """What is read of PEFT's config by name here; methods look at what else is theirs."""

    peft_type: Annotated[str, typed.Allowed("a type of PEFT's", bool)]
    task_type: str | None
    num_virtual_tokens: Count | None
    num_layers: Count | None
    num_attention_heads: Count | None
    num_transformer_submodules: Count | None
    token_dim: Count | None


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
    tensors = {key: tensor.float() for key, tensor in files.tensors.items()}
    adapter_folder.write(directory, fields, tensors, metadata)


def check_head(tokens: VirtualTokens, backbone: Backbone, task_type: str, pools_prompt: bool) -> None:
    """Refuse prompts with which PEFT would look at a virtual token under the head, or fail, or not scale the text.

    Args:
        tokens: The plain tokens.
        backbone: Sizes of the model.
        task_type: PEFT's name of the model's task.
        pools_prompt: Whether a classifier reads a virtual token here, too.

    Raises:
        UnsupportedError: If it would.
    """
    is_at_input = tokens.at_input is not None
    if is_at_input and backbone.inside.scales_ids:
        raise UnsupportedError(
            "PEFT would give this model embeddings that it does not scale, where it scales those of ids, so the "
            "exported prompt would give other results; use a method that works on keys and values"
        )
    if backbone.kind.has_two_texts and task_type in POOLED_TASKS:
        raise UnsupportedError(
            f"PEFT runs no prompt under the {task_type} head of an encoder-decoder: it fails, or gives the decoder "
            "another text; keep the prompt in our own format"
        )
    is_same = pools_prompt and task_type == CLASSES_TASK
    if is_at_input and backbone.kind.has_head_over_input and task_type in POOLED_TASKS and not is_same:
        raise UnsupportedError(
            f"PEFT would pool or label a virtual token under this {task_type} head, so the exported prompt "
            "would give other results; use a method that works on keys and values"
            f"{', or train with pools_prompt=True' if task_type == CLASSES_TASK else ''}"
        )


def with_sizes(files: PeftFiles, backbone: Backbone) -> PeftFiles:
    """Add the sizes that PEFT asks of a prompt, and does not find in every model's config.

    Args:
        files: The adapter. Not changed.
        backbone: Sizes of the model.

    Returns:
        The adapter; one of another kind as it is.
    """
    if TENSOR_KEY not in files.tensors:
        return files
    layers = next(iter(backbone.layers.values()), ())
    # At the input embeddings PEFT asks for layers and heads and makes no use of them.
    sizes = {
        "num_layers": len(layers) or 1,
        "num_attention_heads": layers[0].heads or layers[0].kv_heads if layers else 1,
        "token_dim": backbone.hidden_size,
    }
    known = {name: value for name, value in files.fields.items() if value is not None or name not in sizes}
    return PeftFiles({**sizes, **known}, files.tensors)


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
    if tokens.num_tasks is not None:
        raise UnsupportedError(
            f"PEFT's PROMPT_TUNING holds one task, this merged prompt has {tokens.num_tasks}; export one with task=…, "
            "or export them all before merging"
        )
    if tokens.at_input is not None:
        return _prompt_tuning(tokens.at_input)
    return _prefix_tuning(placement, backbone, task_type)


def _prompt_tuning(embeddings: Tensor) -> PeftFiles:
    count, hidden = embeddings.shape
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": count,
        "token_dim": hidden,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return PeftFiles(config, {TENSOR_KEY: embeddings})


def _prefix_tuning(placement: Placement, backbone: Backbone, task_type: str) -> PeftFiles:
    if placement.tokens.gates:
        raise UnsupportedError(
            "PEFT's PREFIX_TUNING shares the text's softmax, which gated tokens do not; keep the prompt in our format"
        )
    if not backbone.takes_cache:
        raise UnsupportedError(
            "PEFT hands a prefix to the model as past_key_values, which this model does not take: it would fail or be "
            "ignored; keep the prompt in our own format"
        )
    flat, layers, shape = flat_prefix(placement.tokens, backbone)
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


def check_place(directory: Path) -> None:
    """Refuse a directory where an adapter that is no prompt would be overwritten.

    Args:
        directory: Where a prompt shall be written.

    Raises:
        CheckpointError: If there is one, such as a LoRA.
    """
    if adapter_folder.is_there(directory) and not is_prompt(fields := adapter_folder.read_config(directory)):
        raise CheckpointError(
            f"{directory} holds a PEFT adapter of type {fields.get('peft_type')!r}, which the prompt would replace; "
            "give a new folder"
        )


def is_prompt(fields: Mapping[str, Any]) -> bool:
    """Say whether an adapter's config is that of a prompt; LoRA's and its like are not."""
    return "num_virtual_tokens" in fields or fields.get("peft_type") in PACKAGES


def read_config(directory: Path) -> dict[str, Any]:
    """Read the config of an adapter, and none of its tensors; errors as of `read`."""
    fields = adapter_folder.read_config(directory)
    _check_type(fields, directory)
    return fields


def _check_type(fields: Mapping[str, Any], directory: Path) -> None:
    path = directory / CONFIG_FILE
    if not isinstance(fields.get("peft_type"), str):
        raise CheckpointError(f"{path} has the peft_type {fields.get('peft_type')!r}; it is no PEFT adapter")
    known, _ = typed.fields_of(PromptFields)
    typed.read(PromptFields, {name: value for name, value in fields.items() if name in known}, str(path))


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor], Origin | None]:
    """Read the two files of an adapter.

    Args:
        directory: The directory.

    Returns:
        PEFT's config and tensors; and the method it was exported from, `None` for others' files.

    Raises:
        CheckpointError: If a file is missing or corrupt, or says of no type.
    """
    fields, tensors, metadata = adapter_folder.read(directory)
    _check_type(fields, directory)
    check_floating(tensors, adapter_folder.tensor_file(directory))
    origin = None
    if ORIGIN_KEY in metadata:
        with contextlib.suppress(CheckpointError):
            origin = typed.read(Origin, typed.parse(metadata[ORIGIN_KEY], ORIGIN_KEY), ORIGIN_KEY)
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
    copies: tuple[int, ...] = (1,)
    if tensor.shape[1] == backbone.hidden_size and peft_type not in ("PREFIX_TUNING", "CARTRIDGE"):
        tokens = InputTokens(tensor[:count])
        # PEFT keeps rows for the decoder, too, which it does not look at.
        copies = (1, 2) if backbone.kind.has_two_texts else (1,)
    else:
        tokens = read_prefix(tensor, fields, backbone, path)
    if tensor.shape[0] not in [copy * count for copy in copies]:
        raise CheckpointError(f"{path} says {count} virtual tokens, its tensor has {tensor.shape[0]}")
    return Adapter(peft_type, fields.get("task_type"), tokens, count)
