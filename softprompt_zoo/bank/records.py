"""The bytes of one stored prompt.

    checksum (8) | length of the header (4) | header (JSON) | padding | tensors, each aligned to 16 bytes

The checksum covers the prompt's name and everything after it, so it detects a damaged record and one stored under the
wrong name; it is also the record's *stamp*, by which a reader notices that a prompt was replaced.
"""

import dataclasses
import functools
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import CheckpointError

FORMAT_VERSION = 1
STAMP_SIZE = 8
ALIGNMENT = 16
KEPT_HEADERS = 1024
"""Number of decoded headers kept: prompts that were trained alike share one."""
INSTEAD = "add the prompt again with overwrite=True, or delete it"
FIRST_BYTES = 2048
"""Number of bytes at the start of a record that contain the whole header in nearly all cases."""
_LENGTH = struct.Struct("<I")
_START = STAMP_SIZE + _LENGTH.size
"""Where the header begins."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
}


@dataclasses.dataclass(frozen=True)
class Header:
    """A record's description of its tensors."""

    method: str
    """Canonical name of the prompt's method."""
    distribution: str
    """Package that offered the method."""
    version: str
    """Version of that package."""
    config: dict[str, Any]
    """The method's config. Must not be changed: records share it."""
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """The dtype, without `torch.`, and the shape, by name; in the order of the bytes."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A stored prompt, read and checked."""

    stamp: bytes
    """Its checksum."""
    header: Header
    header_text: bytes
    """The header's bytes, equal for equal headers."""
    tensors: dict[str, Tensor]
    """On the CPU; they share one block of memory that belongs to the record alone."""


def encode(
    name: str, tensors: Mapping[str, Tensor], method: str, distribution: str, version: str, config: dict[str, Any]
) -> bytes:
    """Encode a prompt as bytes.

    Args:
        name: The prompt's name.
        tensors: Plain tokens and the trained head, on any device. Not changed.
        method: Canonical name of its method.
        distribution: Package that offered the method.
        version: Version of that package.
        config: The method's config, as JSON values.

    Returns:
        The record.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    shapes = {key: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for key, tensor in plain.items()}
    content = dataclasses.asdict(Header(method, distribution, version, config, shapes))
    header = json.dumps({"format": FORMAT_VERSION, **content}, separators=(",", ":")).encode()
    body = bytearray(_LENGTH.pack(len(header)) + header)
    for tensor in plain.values():
        body += bytes(-(STAMP_SIZE + len(body)) % ALIGNMENT)
        body += tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return _stamp(name, body) + bytes(body)


def decode(name: str, data: memoryview, where: str) -> Record:
    """Read a record and check that it is intact.

    Args:
        name: The prompt's name.
        data: The bytes; the tensors do not reference them.
        where: The bank, for messages.

    Returns:
        The record.

    Raises:
        CheckpointError: If it is damaged, or in a later format.
    """
    _check_stamp(name, data, where)
    end = header_end(data)
    text = bytes(data[_START:end])
    header, offsets = _checked_header(name, text, where)
    if offsets and offsets[-1][1] > data.nbytes:
        raise CheckpointError(
            f"entry {name!r} of {where} is truncated: {data.nbytes} of {offsets[-1][1]} bytes; {INSTEAD}"
        )
    # One copy of the tensors' bytes, from an aligned offset on; the tensors are views of it.
    start = end + -end % ALIGNMENT
    if data.nbytes <= start:
        raise CheckpointError(f"entry {name!r} of {where} has {data.nbytes} bytes, none of them tensor data; {INSTEAD}")
    buffer = torch.frombuffer(bytearray(data[start:]), dtype=torch.uint8)
    places = [(first - start, last - start) for first, last in offsets]
    return Record(bytes(data[:STAMP_SIZE]), header, text, _views(buffer, header, places))


def _check_stamp(name: str, data: memoryview, where: str) -> None:
    if data.nbytes < _START or _stamp(name, data[STAMP_SIZE:]) != data[:STAMP_SIZE]:
        raise CheckpointError(f"entry {name!r} of {where} is damaged: its checksum does not match; {INSTEAD}")


def _views(buffer: Tensor, header: Header, places: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Return the header's tensors as views of a buffer of bytes, each from one offset to another."""
    return {
        key: buffer[first:last].view(_DTYPES[dtype]).view(shape)
        for (key, (dtype, shape)), (first, last) in zip(header.tensors.items(), places, strict=True)
    }


def header_end(data: bytes | memoryview) -> int:
    """Return where the header of a record ends.

    Args:
        data: Its first `FIRST_BYTES` bytes, or all.
    """
    return _START + int(_LENGTH.unpack_from(data, STAMP_SIZE)[0]) if len(data) >= _START else _START


def decode_header(name: str, data: bytes, where: str) -> tuple[bytes, Header]:
    """Read the stamp and the header of a record, but not its tensors.

    Args:
        name: The prompt's name.
        data: The bytes, at least to the end of the header.
        where: The bank, for messages.

    Returns:
        The stamp, not yet compared with the record, as `decode` does; and the header.

    Raises:
        CheckpointError: If the header is damaged, or in a later format.
    """
    text = data[_START : header_end(data)]
    return data[:STAMP_SIZE], _checked_header(name, text, where)[0]


def _checked_header(name: str, text: bytes, where: str) -> tuple[Header, list[tuple[int, int]]]:
    try:
        return _header(text)
    except _FormatError as error:
        raise CheckpointError(f"entry {name!r} of {where} {error}") from None


def seal(name: str, body: bytes) -> bytes:
    """Prepend a checksum to other bytes that a store keeps."""
    return _stamp(name, body) + body


def unseal(name: str, data: bytes) -> bytes | None:
    """Remove the checksum again; return `None` if it does not match."""
    body = data[STAMP_SIZE:]
    return body if _stamp(name, body) == data[:STAMP_SIZE] else None


@functools.lru_cache(maxsize=KEPT_HEADERS)
def _header(text: bytes) -> tuple[Header, list[tuple[int, int]]]:
    """Decode a header, and find where each tensor begins and ends in the record."""
    try:
        content = json.loads(text)
        version = content.pop("format")
        if version != FORMAT_VERSION:
            raise _FormatError(f"has format {version!r}, this version reads {FORMAT_VERSION}; upgrade softprompt-zoo")
        tensors = {key: (dtype, tuple(shape)) for key, (dtype, shape) in content.pop("tensors").items()}
        header = Header(tensors=tensors, **content)
        is_right = _has_right_types(header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, _FormatError):
            raise
        is_right = False
    if not is_right:
        raise _FormatError(f"has a header that does not describe a prompt; {INSTEAD}")
    return header, _offsets(header, _START + len(text))


def _offsets(header: Header, end: int) -> list[tuple[int, int]]:
    """Find where each tensor begins and ends, given the end of the header."""
    offsets = []
    for dtype, shape in header.tensors.values():
        start = end + -end % ALIGNMENT
        end = start + math.prod(shape) * _DTYPES[dtype].itemsize
        offsets.append((start, end))
    return offsets


def _has_right_types(header: Header) -> bool:
    return (
        all(isinstance(text, str) for text in (header.method, header.distribution, header.version))
        and isinstance(header.config, dict)
        and all(dtype in _DTYPES for dtype, _ in header.tensors.values())
        and all(type(size) is int and size >= 0 for _, shape in header.tensors.values() for size in shape)
    )


class _FormatError(ValueError):
    """A record in a later format, or with a header that does not describe a prompt."""


def _stamp(name: str, body: bytes | bytearray | memoryview) -> bytes:
    from xxhash import xxh3_64  # from the extra, which is checked when a bank is opened

    checksum = xxh3_64(name.encode() + b"\0")
    checksum.update(body)
    return checksum.digest()
