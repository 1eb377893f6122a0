"""Checksums of our files, as a bank's entries have: a flipped bit is told, where safetensors and JSON notice none.

They find damage, and are no signature: whoever changes a file on purpose can write another.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from softprompt_zoo.errors import CheckpointError

METADATA_KEY = "softprompt_zoo_checksum"
"""Where the checksum of a file of tensors stands in its header."""
FIELD = "checksum"
"""Where that of a JSON file stands."""


def of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Compute the checksum of a file of tensors.

    Args:
        tensors: Contiguous ones on the CPU, by name.
        metadata: The texts of its header; the checksum among them is left out.

    Returns:
        The checksum over names, dtypes, shapes and bytes of all tensors, and over the texts, as a hexadecimal number.
    """
    found = xxhash.xxh3_64()
    texts = {key: text for key, text in metadata.items() if key != METADATA_KEY}
    found.update(json.dumps(texts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Refuse a file of tensors that has a checksum of other content; arguments as of `of_tensors`, and the file.

    Raises:
        CheckpointError: If its content is not that of its checksum. Files of others and of earlier versions have none.
    """
    if METADATA_KEY in metadata and metadata[METADATA_KEY] != of_tensors(tensors, metadata):
        raise CheckpointError(f"{path} {_DAMAGED}; if you have changed it, leave {METADATA_KEY!r} out of its header")


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the checksum to the content of a JSON file."""
    return {**content, FIELD: _of_json(content)}


def unseal(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Take the checksum off the content of a JSON file.

    Args:
        content: What `seal` returned, or what an earlier version wrote.
        path: The file, for the message.

    Returns:
        The content without it.

    Raises:
        CheckpointError: If the content is not that of the checksum.
    """
    plain = {name: value for name, value in content.items() if name != FIELD}
    if FIELD in content and content[FIELD] != _of_json(plain):
        raise CheckpointError(f"{path} {_DAMAGED}; if you have changed it, leave {FIELD!r} out")
    return plain


def _of_json(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64(json.dumps(content, sort_keys=True).encode()).hexdigest()


_DAMAGED = "does not have its checksum, so it is damaged; take another copy, or save it again"
