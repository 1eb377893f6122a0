"""Writing and reading the index of a checkpoint whose vocabulary contains prompts.

transformers writes the files of the model and tokenizer; this module handles the index next to them, which names the
tokens, the chat template that puts them before a chat, and reading the prompts back.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt_zoo.config import typed
from softprompt_zoo.errors import CheckpointError, UnsupportedError
from softprompt_zoo.files import damage
from softprompt_zoo.files.damage import check_finite, check_floating
from softprompt_zoo.files.reading import PromptName, check_format, check_regular, read_json
from softprompt_zoo.files.writing import write_json

FORMAT_VERSION = 1
INDEX_FILE = "soft_tokens.json"
TENSOR_FILE = "model.safetensors"
MOST_TOKENS = 2**40
"""Larger than any vocabulary, and small enough for an index."""
SHARDS_FILE = "model.safetensors.index.json"
_START = "{%- set soft_prompts = "
# Not "-%}": the template may begin with whitespace. The line break belongs to the block.
_END = "{%- endif %}\n"
_DEFAULT = "auto"
"""vLLM's value for a variable of a chat template that was not given; it also drops null."""
_NOTHING = ("none", "")
"""Values that mean no prompt, for clients that cannot send null."""


TokenId = Annotated[int, typed.integer(0, MOST_TOKENS)]


class SoftTokens(TypedDict):
    """The tokens of one prompt."""

    ids: Annotated[list[TokenId], typed.Allowed("a list of at least one id", bool)]
    """Their ids, in order."""
    tokens: list[str]
    """Their names in the tokenizer."""
    in_front: str | None
    """String to put before a plain text to use only this prompt; `None` if no string gives the right ids."""


class Shards(TypedDict, total=False):
    """transformers' index of a checkpoint in several files."""

    metadata: Any
    weight_map: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Index:
    """Which tokens of a checkpoint are prompts."""

    tensor: str
    """Name of the embedding table in the checkpoint."""
    scale: Annotated[float, typed.Allowed("a number above 0", lambda value: value > 0)]
    """Factor by which the model multiplies the table's rows."""
    active: tuple[str, ...]
    """The prompts that the chat template puts first by default, in order."""
    in_front: str | None
    """String to put before a plain text to use these; `None` if no string gives the right ids."""
    add_special_tokens: bool
    """The tokenizer's argument for such a text: `False` if `in_front` already contains the special tokens."""
    prompts: dict[PromptName, SoftTokens]
    """The tokens of each prompt, by name."""


def check_names(names: Iterable[str]) -> None:
    """Refuse names with which no chat could select a prompt.

    Args:
        names: Names of prompts.

    Raises:
        UnsupportedError: If one has another meaning.
    """
    meanings = {_DEFAULT: "the default prompt, in vLLM", **dict.fromkeys(_NOTHING, "no prompt")}
    for name in names:
        if name in meanings:
            raise UnsupportedError(
                f"a prompt named {name!r} could not be selected: in a chat this name means {meanings[name]}; "
                "give it another name, for example with zoo.load(…, name=…)"
            )


def token_names(prompt: str, count: int) -> list[str]:
    """Name the tokens of a prompt."""
    return [f"<|soft_{prompt}_{number}|>" for number in range(count)]


def chat_template(template: str, tokens: Mapping[str, str], default: str) -> str:
    """Put a prompt before a chat template.

    Args:
        template: The template. One from an earlier export keeps its prompts, under their names.
        tokens: The prompts' tokens as one string each, by the prompts' names.
        default: The string to use if the caller names no prompt.

    Returns:
        The template with an additional variable `soft_prompt`: a prompt's name; `none`, `"none"` or `""` for no prompt.

    Raises:
        UnsupportedError: If it already has a variable of that name, or a prompt's name has another meaning.
    """
    choices = dict(tokens)
    if template.startswith(_START) and _END in template:
        first, template = template.removeprefix(_START).split(_END, maxsplit=1)
        choices = {**json.loads(first.partition(" -%}")[0]), **choices}
    check_names(choices)
    if "soft_prompt" in template:
        raise UnsupportedError(
            "the tokenizer's chat template already has a variable 'soft_prompt', which would choose the prompt; "
            "rename it there"
        )
    names = ", ".join(choices)
    return (
        f"{_START}{json.dumps(choices)} -%}}"  # names and tokens are plain ASCII, so this is also a Jinja literal
        f"{{%- if soft_prompt is not defined -%}}{{{{- {json.dumps(default)} -}}}}"
        f"{{%- elif soft_prompt is none or soft_prompt in {json.dumps(_NOTHING)} -%}}"
        "{%- elif soft_prompt in soft_prompts -%}{{- soft_prompts[soft_prompt] -}}"
        f"{{%- else -%}}{{{{- raise_exception('unknown soft_prompt; this model has {names}') -}}}}{_END}{template}"
    )


def write_index(directory: Path, index: Index) -> None:
    """Write the index next to a checkpoint."""
    content = {"format": FORMAT_VERSION, **dataclasses.asdict(index)}
    write_json(directory / INDEX_FILE, damage.seal(content))


def read(directory: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the prompts from a checkpoint.

    Args:
        directory: The checkpoint.

    Returns:
        The embeddings `(tokens, hidden)` by name, as the model's embedding module returns them, in the checkpoint's
        dtype; and the names of the active ones.

    Raises:
        CheckpointError: If a file is missing, corrupt, or in a later format.
    """
    index = _index(directory)
    rows = {name: _rows(directory, index.tensor, prompt["ids"]) for name, prompt in index.prompts.items()}
    check_floating(rows, directory / INDEX_FILE)
    scaled = {name: (own * index.scale).to(own.dtype) for name, own in rows.items()}
    check_finite(scaled, f"{directory / INDEX_FILE}, scale {index.scale}")
    return scaled, index.active


def counts(directory: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of virtual tokens of each prompt, and the active ones; errors as in `read`."""
    index = _index(directory)
    return {name: len(prompt["ids"]) for name, prompt in index.prompts.items()}, index.active


def _index(directory: Path) -> Index:
    path = directory / INDEX_FILE
    content = read_json(path)
    check_format(content, FORMAT_VERSION, path)
    content = damage.unseal(content, path)
    return typed.read(Index, {name: value for name, value in content.items() if name != "format"}, str(path))


def table_name(directory: Path, table: Tensor) -> str:
    """Find an embedding table in a checkpoint; for some models, its name there differs from that in the model.

    Args:
        directory: The checkpoint.
        table: The table.

    Returns:
        Its name.

    Raises:
        CheckpointError: If it is missing.
    """
    wanted = table.detach().cpu()
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                shape = file.get_slice(name).get_shape()
                if shape == list(wanted.shape) and torch.equal(file.get_tensor(name), wanted):
                    return str(name)
    raise CheckpointError(f"the embedding table was not written to {directory} with its new rows; nothing is kept")


def _rows(directory: Path, tensor: str, ids: Sequence[int]) -> Tensor:
    with _open(directory, tensor) as file:
        table = file.get_slice(tensor)
        shape = table.get_shape()
        if len(shape) != 2 or max(ids) >= shape[0]:
            raise CheckpointError(
                f"{directory / INDEX_FILE} names ids up to {max(ids)}; {tensor!r} has the shape {tuple(shape)}"
            )
        first = min(ids)
        rows: Tensor = table[first : max(ids) + 1]
        return rows[[token - first for token in ids]]


def _shard(directory: Path, tensor: str) -> Path:
    """Return the file of a tensor in a checkpoint of several files."""
    shards = directory / SHARDS_FILE
    where = typed.read(Shards, read_json(shards), str(shards)).get("weight_map", {})
    name = where.get(tensor, TENSOR_FILE)
    if name != Path(name).name or name in ("", ".", ".."):
        raise CheckpointError(f"{shards}: weight_map.{tensor} is {name!r}; expected the name of a file next to it")
    return directory / name


def _open(directory: Path, tensor: str) -> Any:
    path = directory / TENSOR_FILE
    path = path if path.is_file() else _shard(directory, tensor)
    try:
        check_regular(path)
        file = safe_open(path, framework="pt")
        found = tensor in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing, truncated or not a safetensors file ({error})") from error
    if not found:
        raise CheckpointError(f"{path} has no tensor {tensor!r}, which {INDEX_FILE} names; export the prompt again")
    return file
