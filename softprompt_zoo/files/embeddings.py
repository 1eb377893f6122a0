"""Bare embeddings of prompts, for engines that accept embeddings instead of tokens."""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from softprompt_zoo.config import typed
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files import damage
from softprompt_zoo.files.damage import check_floating
from softprompt_zoo.files.reading import PromptName, check_format, read_json, read_tensors
from softprompt_zoo.files.writing import write_atomically, write_json, write_tensors

FORMAT_VERSION = 1
INDEX_FILE = "prompt_embeds.json"
TENSOR_FILE = "prompt_embeds.safetensors"

Shape = Annotated[list[int], typed.Allowed("a list of two integers", lambda value: len(value) == 2)]

README = """\
# Prompts as embeddings

{table}

`{tensors}` holds them by name, in the model's dtype ({dtype}); each `.npy` file holds one, in {numpy_dtype}. They
have the form that the model's embedding module returns, so use them like the embeddings of tokens: before the whole
text, including its begin token if it has one. Do not scale them.

## vLLM

Start the engine with `enable_prompt_embeds=True`. `embed` is the model's embedding module, as transformers loads it.

```python
from safetensors.torch import load_file

prompt = load_file("{tensors}")["{name}"]
text = embed(tokenizer(question, return_tensors="pt").input_ids)[0].detach()
answers = llm.generate({{"prompt_embeds": torch.cat([prompt, text.to(prompt.dtype)])}})
```

These embeddings are finite. Those that clients send may not be: a request with NaN leaves it in blocks of the cache,
and other requests that reuse these blocks are answered with NaN until the server is restarted. Check
`embeds.isfinite().all()` in front of the server, and do not enable prompt embeddings for clients that you do not trust.

## llama.cpp

A `llama_batch` holds either embeddings (float32) or tokens, so the prompt goes first, in a separate batch.

```python
prompt = np.ascontiguousarray(np.load("{name}.npy"), dtype=np.float32)
count, hidden = prompt.shape
batch = llama_cpp.llama_batch_init(count, hidden, 1)
batch.n_tokens = count
ctypes.memmove(batch.embd, prompt.ctypes.data, prompt.nbytes)
for i in range(count):
    batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = i, 1, 0, 0
assert llama_cpp.llama_decode(context, batch) == 0
# then the tokens of the text, from position `count` on
```

## softprompt_zoo

`zoo.load(base, "this folder")` turns them back into prompts.
"""


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of a folder."""

    active: tuple[str, ...]
    """Names of the active prompts, in order."""
    shapes: dict[PromptName, Shape]
    """`[tokens, hidden]` by name."""
    dtypes: dict[str, str]
    """torch's names of their dtypes by name, without `torch.`."""


def write(directory: Path, prompts: Mapping[str, Tensor], active: tuple[str, ...]) -> None:
    """Write a folder, each file atomically, the index last.

    Args:
        directory: The folder to write to; it must exist.
        prompts: The embeddings `(tokens, hidden)` by name, in the model's dtype.
        active: Names of the active ones, in order.
    """
    plain = {name: embeddings.detach().cpu().contiguous() for name, embeddings in prompts.items()}
    for name, embeddings in plain.items():
        buffer = io.BytesIO()
        _save_numpy(buffer, _for_numpy(embeddings))
        write_atomically(directory / f"{name}.npy", buffer.getvalue())
    write_tensors(directory / TENSOR_FILE, plain, {})
    write_atomically(directory / "README.md", _readme(plain).encode())
    shapes = {name: list(embeddings.shape) for name, embeddings in plain.items()}
    dtypes = {name: str(embeddings.dtype).removeprefix("torch.") for name, embeddings in plain.items()}
    content = dataclasses.asdict(Index(active, shapes, dtypes))
    write_json(directory / INDEX_FILE, damage.seal({"format": FORMAT_VERSION, **content}))


def read(directory: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read a folder.

    Args:
        directory: The folder.

    Returns:
        The embeddings `(tokens, hidden)` by name, and the names of the active ones.

    Raises:
        CheckpointError: If a file is missing, corrupt, or in a later format.
    """
    index = _index(directory)
    tensors, _ = read_tensors(directory / TENSOR_FILE)
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != index.shapes:
        raise CheckpointError(f"{directory / TENSOR_FILE} holds {found}; {INDEX_FILE} says {index.shapes}")
    check_floating(tensors, directory / TENSOR_FILE)
    return {name: tensors[name] for name in index.shapes}, index.active


def counts(directory: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of virtual tokens of each prompt, and the active ones; errors as in `read`."""
    index = _index(directory)
    return {name: shape[0] for name, shape in index.shapes.items()}, tuple(index.active)


def _index(directory: Path) -> Index:
    path = directory / INDEX_FILE
    content = read_json(path)
    check_format(content, FORMAT_VERSION, path)
    content = damage.unseal(content, path)
    return typed.read(Index, {name: value for name, value in content.items() if name != "format"}, str(path))


def _for_numpy(embeddings: Tensor) -> Tensor:
    return embeddings.float() if embeddings.dtype == torch.bfloat16 else embeddings  # numpy has no bfloat16


def _save_numpy(buffer: io.BytesIO, embeddings: Tensor) -> None:
    import numpy as np

    np.save(buffer, embeddings.numpy(), allow_pickle=False)


def _readme(prompts: Mapping[str, Tensor]) -> str:
    name, first = next(iter(prompts.items()))
    rows = [f"| `{key}` | {tensor.shape[0]} | {tensor.shape[1]} |" for key, tensor in prompts.items()]
    return README.format(
        table="\n".join(["| prompt | tokens | hidden size |", "| --- | --- | --- |", *rows]),
        tensors=TENSOR_FILE,
        name=name,
        dtype=str(first.dtype).removeprefix("torch."),
        numpy_dtype=str(_for_numpy(first).dtype).removeprefix("torch."),
    )
