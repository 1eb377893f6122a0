"""Reading tensors pickled by `torch.save`, as PEFT did before 0.7, without running anything that the file names.

More restrictive than torch's own safe unpickler: only tensors are allowed, nothing is decompressed, and no number in
the file can allocate more memory than the file is long.
"""

import math
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from softprompt_zoo.errors import CheckpointError

REBUILDERS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
"""Globals that a pickled dictionary of tensors names besides storage types."""
LONGEST_INDEX = 2**24
"""Maximum size of the pickle without the numbers, in bytes; that of a thousand tensors has 0.1 MB."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Read a dictionary of tensors from a file written by `torch.save`.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, each with separate memory.

    Raises:
        CheckpointError: If it is missing, damaged or not a regular file, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing or not a regular file")
    found, size = _unpickled(path)
    if not isinstance(found, dict):
        raise _refusal(path, f"holds {type(found).__name__} instead of a dictionary of tensors")
    _check_tensors(path, found, size)
    return {key: tensor.detach().clone() for key, tensor in found.items()}


def _unpickled(path: Path) -> tuple[Any, int]:
    """Return the content of a file and its length in bytes."""
    try:
        with path.open("rb") as file:
            size = _check(path, file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True), size
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises errors of all types
        raise _refusal(path, f"is truncated or not what torch.save writes ({type(error).__name__})") from error


def _check_tensors(path: Path, found: dict[Any, Any], size: int) -> None:
    """Refuse anything but dense tensors by name, and tensors with more numbers than a file of this size can hold."""
    room: float = 2 * size  # tied tables are stored only once
    for key, tensor in found.items():
        room -= _bytes(tensor)
        if not isinstance(key, str) or room < 0:
            raise _refusal(path, f"holds at {key!r} something other than a dense tensor whose numbers it has")


def _bytes(tensor: Any) -> float:
    """Return how many bytes a dense tensor takes; infinity for anything else."""
    is_dense = isinstance(tensor, Tensor) and tensor.layout is torch.strided
    return tensor.numel() * tensor.element_size() if is_dense else math.inf


def _check(path: Path, file: IO[bytes]) -> int:
    """Refuse a compressed file or one that names more than tensors; return the length of the file."""
    size = file.seek(0, 2)
    if not zipfile.is_zipfile(file):
        raise _refusal(path, "was not written by torch.save of torch 1.6 or later, or is truncated")
    with zipfile.ZipFile(file) as archive:
        if _is_compressed(archive.infolist(), size):
            raise _refusal(path, "is compressed, which torch.save's files are not")
        strange = _strange_name(_index(path, archive))
    if strange is not None:
        raise _refusal(path, f"is pickled and names {strange!r}, which is not a tensor")
    return size


def _index(path: Path, archive: zipfile.ZipFile) -> bytes:
    """Return the only pickle in a file."""
    indices = [part for part in archive.infolist() if Path(part.filename).name == "data.pkl"]
    if len(indices) != 1 or indices[0].file_size > LONGEST_INDEX:
        raise _refusal(path, "is not what torch.save writes for a dictionary of tensors")
    return archive.read(indices[0])


def _strange_name(data: bytes) -> str | None:
    """Find what a pickle names besides tensors, without running it."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name == "GLOBAL" and not _is_of_tensors(str(argument)):
            return str(argument)
        if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            return operation.name
    return None


def _is_of_tensors(name: str) -> bool:
    """Return whether a name in a pickle is that of a function that rebuilds tensors, or of a storage type."""
    return name in REBUILDERS or (name.startswith("torch ") and name.endswith("Storage"))


def _refusal(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {problem}; nothing was read from it. If you trust the file, convert it with "
        f'safetensors.torch.save_file(torch.load("{path.name}"), "{path.with_suffix(".safetensors").name}")'
    )


def _is_compressed(parts: list[zipfile.ZipInfo], size: int) -> bool:
    """Return whether the parts of a file of `size` bytes are compressed, or claim to exceed the file."""
    return any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size
