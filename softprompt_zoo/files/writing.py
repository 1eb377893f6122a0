"""Tensors, JSON and bytes written so that a crash leaves the old file or the new one."""

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
"""Age of a temporary file that nobody writes any more: a file is moved to its place as soon as it is written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file next to its place and move it there.

    Args:
        path: Where it goes; an existing file is replaced.
        content: All of it.
    """
    replace_files({path: content})


def replace_files(contents: Mapping[Path, bytes], removed_first: Sequence[Path] = ()) -> None:
    """Write files next to their places, and move them there when all are written: a full disk changes nothing.

    Args:
        contents: By place, in the order in which they are moved; existing files are replaced.
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
    """Write a file that is not there, for a place, down to the disk."""
    try:
        # The process' umask acts on the mode, as on that of any new file.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno and not error.filename:  # a full disk names none
            error.filename = str(place)
        raise


def temporaries_of(path: Path) -> list[Path]:
    """Return what killed processes, or writing ones, have next to a file's place."""
    named = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    return [found for found in path.parent.glob(f".{glob.escape(path.name)}.*") if named.fullmatch(found.name)]


def _remove_orphans(path: Path) -> None:
    for found in temporaries_of(path):
        with contextlib.suppress(OSError):  # somebody else removes it, or may not be hindered
            if found.stat().st_mtime < time.time() - ORPHANED_SECONDS:
                found.unlink()


def make_directory(directory: str | os.PathLike[str]) -> Path:
    """Make a directory if it is missing.

    Args:
        directory: Where.

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
        path: Where it goes.
        tensors: Named tensors; copied to the CPU, not changed.
        metadata: Text stored in its header.
    """
    write_atomically(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file; arguments as of `write_tensors`."""
    plain: dict[str, Tensor] = {}
    written = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        memory = plain[name].untyped_storage().data_ptr()
        if memory in written:  # safetensors takes no two tensors of one memory
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
