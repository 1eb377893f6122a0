"""Reading tensors and JSON from files that may be missing, damaged, or not regular files."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt_zoo.config import typed
from softprompt_zoo.config.options import NAME_PATTERN
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files import damage

PromptName = Annotated[str, typed.Allowed("letters, digits, '_' and '-'", NAME_PATTERN.fullmatch)]
"""A prompt's name in an index."""
MOST_JSON = 64 * 2**20
"""Maximum size of a JSON file in bytes; the largest list a model's tensors. Our choice."""


def existing_directory(directory: str | os.PathLike[str]) -> Path:
    """Return the path of a saved prompt's folder.

    Args:
        directory: The folder, as the user gave it.

    Raises:
        CheckpointError: If it is not a folder, or not a valid path.
        TypeError: If it is neither a string nor a path.
    """
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(
            f"the directory is {directory!r} ({type(directory).__name__}); expected a path, as a string or Path"
        )
    path = Path(directory)
    try:
        is_there = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):  # missing, too long, or with a character not allowed in paths
        is_there = False
    if not is_there:
        raise CheckpointError(
            f"{typed.shortened(str(path))} is not a folder; expected one written by save_pretrained, or a PEFT "
            "prompt adapter"
        )
    return path


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Its tensors, on the CPU, and its metadata. The tensors may be views of the file, which other programs can
        overwrite or truncate: copy what you keep.

    Raises:
        CheckpointError: If it is missing, truncated, not a safetensors file, or does not match its checksum.
    """
    with _opened(path) as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    damage.check_tensors(tensors, metadata, path)
    return tensors, metadata


def check_format(content: object, version: int, where: str | Path) -> None:
    """Refuse an index in a format that this version does not read.

    Args:
        content: The index.
        version: The format that this version reads.
        where: The index, for the message.

    Raises:
        CheckpointError: If its `format` differs.
    """
    found = content.get("format") if isinstance(content, dict) else None
    if found != version or isinstance(found, bool):
        raise CheckpointError(
            f"{where} has format {found!r}, this version reads {version}; upgrade softprompt-zoo, or use another copy"
        )


def read_metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata without its tensors; errors as in `read_tensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; save the prompt again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); save the prompt again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        CheckpointError: If it is missing, or not a JSON object.
    """
    try:
        size = check_regular(path)
        if size > MOST_JSON:
            raise CheckpointError(f"{path} has {size} bytes; a prompt's JSON files have at most {MOST_JSON}")
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    return parse_json(text, path)


def parse_json(text: str | bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: The JSON.
        path: The file it was read from, for messages.

    Returns:
        The object.

    Raises:
        CheckpointError: If it is not a JSON object.
    """
    value = typed.parse(text, str(path))
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}; expected a JSON object")
    return value


def check_regular(path: Path) -> int:
    """Refuse pipes and devices, from which reading may block forever.

    Args:
        path: A file.

    Returns:
        Its size in bytes.

    Raises:
        CheckpointError: If it is not a regular file.
        OSError: If it is missing.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a regular file; expected one written by save_pretrained or export")
    return found.st_size
