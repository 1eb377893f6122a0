"""The keys and values of a prefix, for engines with a key-value cache.

Their description is written into the header of the tensors' file, which is all that an engine needs, and again as
`prefix.json`, for people and for recognizing such folders.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone import identity
from softprompt_zoo.config import typed
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files.damage import check_floating
from softprompt_zoo.files.reading import PromptName, check_format, read_json, read_metadata, read_tensors
from softprompt_zoo.files.writing import write_atomically, write_json, write_tensors
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.site_tokens import SiteTokens

FORMAT_VERSION = 1
INDEX_FILE = "prefix.json"
TENSOR_FILE = "prefix.safetensors"
METADATA_KEY = "softprompt_zoo_prefix"

README = """\
# A prompt as keys and values

The prompt `{name}` for a model of the type `{model_type}`: the keys and values of {tokens} tokens before the text.
`{tensors}` holds them in {dtype}, of {layers} layers:
{shapes}.
They are in the form that the model's attention sees, normalized and rotated at the positions 0 to {last}, so they go
into its cache unchanged, and the text begins at the position {tokens}. {windows}

`{index}` and the header of `{tensors}` describe the model they are for: its type, its sizes, and a sample of
its embedding table.

## transformers

```python
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

prefix = load_file("{tensors}")
cache = DynamicCache(config=model.config)
for layer in range({layers}):
    cache.update({key}[None], {value}[None], layer)
ids = torch.cat([torch.zeros(1, {tokens}, dtype=torch.long), ids], dim=1)  # the first ones are not read
answer = model.generate(ids, attention_mask=torch.ones_like(ids), {cache_argument}=cache)[0, ids.shape[1]:]
```

The cache belongs to one text; fill a new one for the next. transformers calls the argument `cache` or
`past_key_values`, depending on its version; the code shows the name in the version that the export was made with.

## vLLM

`softprompt-zoo bank add MODEL BANK "this folder"` adds the prompt to a bank, from which vLLM serves it by name with
the package softprompt-zoo-vllm.

## softprompt_zoo

`zoo.load(base, "this folder")` turns them back into a prompt.
"""


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of a folder."""

    name: PromptName
    """The prompt's name."""
    num_tokens: int
    """Positions that the prefix takes up before the text."""
    dtype: str
    """torch's name of the dtype, without `torch.`."""
    windows: list[int | None]
    """For each layer, the width of its sliding window in positions; the prefix slides out of it as text does."""
    shared_with: list[int | None]
    """For each layer, the layer whose keys and values it reads if it computes none itself; both are the same here."""
    model: dict[str, Any]
    """The model it is for, from `identity.describe`."""


def write(directory: Path, index: Index, tokens: SiteTokens, cache_argument: str) -> None:
    """Write a folder.

    Args:
        directory: The folder to write to; it must exist.
        index: Its index.
        tokens: Keys and values, in the dtype that the index names.
        cache_argument: Name of the model's argument for its cache of keys and values, for the README.
    """
    content = {"format": FORMAT_VERSION, **dataclasses.asdict(index)}
    tensors = {**_named("key", tokens.keys), **_named("value", tokens.values)}
    write_tensors(directory / TENSOR_FILE, tensors, {METADATA_KEY: json.dumps(content)})
    write_atomically(directory / "README.md", _readme(index, tensors, cache_argument).encode())
    write_json(directory / INDEX_FILE, content)


def read(directory: Path) -> tuple[Index, SiteTokens]:
    """Read a folder.

    Args:
        directory: The folder.

    Returns:
        Its index, and the keys and values of each layer, `(kv_heads, tokens, head_dim)`.

    Raises:
        CheckpointError: If a file is missing, corrupt, or in a later format.
    """
    read_json(directory / INDEX_FILE)
    path = directory / TENSOR_FILE
    tensors, metadata = read_tensors(path)
    index = _index(metadata.get(METADATA_KEY), path)
    check_floating(tensors, path)
    depth = len(index.windows)
    keys, values = _layers(tensors, "key", depth), _layers(tensors, "value", depth)
    if len(keys) != depth or len(values) != depth:
        raise CheckpointError(
            f"{path} holds {', '.join(tensors) or 'nothing'}; expected the keys and values of {depth} layers"
        )
    return index, SiteTokens(tuple(keys), tuple(values))


def counts(directory: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the prompt's number of virtual tokens by its name, and that name; errors as in `read`."""
    path = directory / TENSOR_FILE
    index = _index(read_metadata(path).get(METADATA_KEY), path)
    return {index.name: index.num_tokens}, (index.name,)


def _index(text: str | None, path: Path) -> Index:
    if text is None:
        raise CheckpointError(f"{path} was not written by softprompt_zoo; expected the prefix that {INDEX_FILE} names")
    where = f"the index in {path}"
    content = typed.parse(text, where)
    check_format(content, FORMAT_VERSION, where)
    index = typed.read(Index, {name: value for name, value in content.items() if name != "format"}, where)
    if not identity.is_description(index.model):
        raise CheckpointError(f"{where} does not describe a model in 'model'; export the prompt again")
    return index


def _named(kind: str, layers: Sequence[Float[Tensor, "kv_heads tokens width"] | None]) -> dict[str, Tensor]:
    """Name the tensors: one for all layers, or one for each if they differ in size."""
    own = [layer for layer in layers if layer is not None]
    if len({layer.shape for layer in own}) == 1:
        return {kind: torch.stack(own)}
    return {f"{kind}.{index}": layer for index, layer in enumerate(own)}


def _layers(tensors: dict[str, Tensor], kind: str, depth: int) -> list[Tensor]:
    """Undo `_named`; returns too few layers if tensors are missing."""
    if kind in tensors:
        return list(tensors[kind])
    return [tensors[f"{kind}.{index}"] for index in range(depth) if f"{kind}.{index}" in tensors]


STACKED = {
    "shapes": "`key` and `value` `(layers, kv_heads, tokens, head_dim)`",
    "key": 'prefix["key"][layer]',
    "value": 'prefix["value"][layer]',
}
"""The page's text if all layers are in one tensor."""
BY_LAYER = {
    "shapes": "`key.0`, `value.0`, … `(kv_heads, tokens, head_dim)` for each layer",
    "key": 'prefix[f"key.{layer}"]',
    "value": 'prefix[f"value.{layer}"]',
}
"""The page's text if each layer has a tensor."""


def _readme(index: Index, tensors: dict[str, Tensor], cache_argument: str) -> str:
    form = STACKED if "key" in tensors else BY_LAYER
    windows = sorted({width for width in index.windows if width is not None})
    return README.format(
        name=index.name,
        model_type=index.model.get("model_type", ""),
        tokens=index.num_tokens,
        last=index.num_tokens - 1,
        layers=len(index.windows),
        tensors=TENSOR_FILE,
        index=INDEX_FILE,
        dtype=index.dtype,
        cache_argument=cache_argument,
        **form,
        windows=f"Layers with a window (of {', '.join(map(str, windows))}) let them slide out." if windows else "",
    )
