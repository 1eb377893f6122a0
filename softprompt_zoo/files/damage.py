"""Signs that a file is damaged: a checksum that does not match, NaN or infinity, dtypes that are not floating-point.

Our files have checksums, as a bank's entries do, so a flipped bit is reported; safetensors and JSON do not notice it.

They detect damage but are not signatures: anyone who changes a file on purpose can write a new one.
"""

import importlib.util
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import CheckpointError, UnsupportedError

METADATA_KEY = "softprompt_zoo_checksum"
"""Key of the checksum in the header of a file of tensors."""
FIELD = "checksum"
"""Key of the checksum in a JSON file."""
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Dtypes in which trained numbers may be stored."""
XXH3_DIGITS = 16
"""Length of the checksums of earlier versions, 64-bit XXH3; those of this version, CRC-32, have 8 digits."""

_Pieces = Iterable[bytes | memoryview]
_DAMAGED = "does not match its checksum, so it is damaged; use another copy, or save it again"


def of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Compute the checksum of a file of tensors.

    Args:
        tensors: Contiguous tensors on the CPU, by name.
        metadata: The strings in its header; a checksum among them is ignored.

    Returns:
        The checksum of the tensors' names, dtypes, shapes and bytes, and of the metadata, as a hexadecimal number.
    """
    return _crc32(_pieces_of_tensors(tensors, metadata))


def check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Refuse a file of tensors that does not match its checksum; arguments as in `of_tensors`, and the file.

    Raises:
        CheckpointError: If its content does not match. Files of other programs or earlier versions have no checksum.
    """
    if METADATA_KEY in metadata and not _is_of(metadata[METADATA_KEY], _pieces_of_tensors(tensors, metadata)):
        raise CheckpointError(f"{path} {_DAMAGED}; if you changed it yourself, remove {METADATA_KEY!r} from its header")


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the checksum to the content of a JSON file."""
    return {**content, FIELD: _crc32(_pieces_of_json(content))}


def unseal(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Remove the checksum from the content of a JSON file.

    Args:
        content: The result of `seal`, or what an earlier version wrote.
        path: The file, for the message.

    Returns:
        The content without it.

    Raises:
        CheckpointError: If the content does not match the checksum.
    """
    plain = {name: value for name, value in content.items() if name != FIELD}
    if FIELD in content and not _is_of(content[FIELD], _pieces_of_json(plain)):
        raise CheckpointError(f"{path} {_DAMAGED}; if you changed it yourself, remove {FIELD!r}")
    return plain


def _pieces_of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    texts = {key: text for key, text in metadata.items() if key != METADATA_KEY}
    yield json.dumps(texts, sort_keys=True).encode()
    for name in sorted(tensors):
        tensor = tensors[name]
        yield json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        yield tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _pieces_of_json(content: Mapping[str, Any]) -> list[bytes]:
    return [json.dumps(content, sort_keys=True).encode()]


def _is_of(claimed: Any, pieces: _Pieces) -> bool:
    """Return whether a checksum matches the content; those of earlier versions cannot be checked without xxhash."""
    if not isinstance(claimed, str) or len(claimed) != XXH3_DIGITS:
        return bool(claimed == _crc32(pieces))
    return importlib.util.find_spec("xxhash") is None or claimed == _xxh3(pieces)


def _crc32(pieces: _Pieces) -> str:
    found = 0
    for piece in pieces:
        found = zlib.crc32(piece, found)
    return f"{found:08x}"


def _xxh3(pieces: _Pieces) -> str:
    from xxhash import xxh3_64

    found = xxh3_64()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def check_floating(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse tensors that cannot be loaded into parameters as they are.

    Args:
        tensors: The tensors of a file, by name.
        where: The file, or the prompt in it, for the message.

    Raises:
        CheckpointError: If one holds anything but finite floating-point numbers.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
            raise CheckpointError(f"{where}: tensor {name!r} has dtype {tensor.dtype}; expected one of {known}")
    check_finite(tensors, where)


def check_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse NaN and infinity.

    Args:
        tensors: The tensors of a file, by name.
        where: The file, or the prompt in it, for the message.

    Raises:
        CheckpointError: If one holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            wrong = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f"{where}: tensor {name!r} holds NaN or infinity ({wrong} of {tensor.numel()} numbers); its training "
                "failed or the file is damaged; use another copy, or train again"
            )


def check_numbers(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse a prompt without values, or with NaN or infinity, before it is stored or exported.

    Args:
        tensors: Its tensors, by name.
        what: The prompt, for the message.

    Raises:
        UnsupportedError: If one holds NaN or infinity, or is on the `meta` device.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise UnsupportedError(f"{what} is on the meta device and has no values; load them first")
        if not is_finite(tensor):
            raise UnsupportedError(f"{what} holds NaN or infinity in {name!r}; train it again before it is stored")


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity; integers never do."""
    if not tensor.is_floating_point() or tensor.dtype not in FLOATING:
        return True
    # The sum is quick, and never finite if a number is not; that of large numbers may overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
