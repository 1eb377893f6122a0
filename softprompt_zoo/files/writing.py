"""Writing tensors, JSON and bytes so that a crash leaves either the old file or the new one."""

import contextlib
import glob
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files import damage

ORPHANED_SECONDS = 3600
"""Age at which a temporary file is abandoned: files are moved into place as soon as they are written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file and move it into place.

    Args:
        path: The final path; an existing file is replaced.
        content: The whole content.
    """
    replace_files({path: content})


def replace_files(contents: Mapping[Path, bytes], removed_first: Sequence[Path] = ()) -> None:
    """Write temporary files, and move them into place once all are written: a full disk changes nothing.

    Args:
        contents: Contents by path, in the order in which they are moved; existing files are replaced.
        removed_first: Files that are removed before the first one is moved.
    """
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for path in contents}
    try:
        for path, content in contents.items():
            _remove_orphans(path)
            _write_new(temporaries[path], content, path)
        for path in removed_first:
            path.unlink(missing_ok=True)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _write_new(path: Path, content: bytes, place: Path) -> None:
    """Write a new file for a final place, and flush it to disk."""
    try:
        # The process's umask applies to the mode, as for any new file.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno and not error.filename:  # a full disk: no name is given
            error.filename = str(place)
        raise


def temporaries_of(path: Path) -> list[Path]:
    """Return the temporary files of killed or writing processes next to a path."""
    named = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    return [found for found in path.parent.glob(f".{glob.escape(path.name)}.*") if named.fullmatch(found.name)]


def _remove_orphans(path: Path) -> None:
    for found in temporaries_of(path):
        with contextlib.suppress(OSError):  # someone else removed it, or we lack permission
            if found.stat().st_mtime < time.time() - ORPHANED_SECONDS:
                found.unlink()


def make_directory(directory: str | os.PathLike[str]) -> Path:
    """Create a directory if it is missing.

    Args:
        directory: The directory.

    Returns:
        Its path.

    Raises:
        CheckpointError: If there is a file in its place.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; expected a folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Args:
        path: The file.
        tensors: Tensors by name; copied to the CPU, not changed.
        metadata: Strings stored in its header.
    """
    write_atomically(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file; arguments as in `write_tensors`."""
    plain: dict[str, Tensor] = {}
    written = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        memory = plain[name].untyped_storage().data_ptr()
        if memory in written:  # safetensors refuses tensors that share memory
            plain[name] = plain[name].clone()
        written.add(memory)
    texts = {"format": "pt", **metadata}
    content: bytes = save(plain, {**texts, damage.METADATA_KEY: damage.of_tensors(plain, texts)})
    return content


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file with sorted keys."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return the content of a JSON file with sorted keys."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
