"""Commands on prompts named by their repository on the hub."""

import shutil

import pytest
from helpers import loopback_hub
from helpers.commands import invoke, refusal

from softprompt_zoo.bank.bank import PromptBank


@pytest.fixture
def hub(place, monkeypatch, tmp_path):
    with loopback_hub.serve(monkeypatch, tmp_path / "cache") as served:
        files = {path.name: path.read_bytes() for path in (place / "run").iterdir() if path.is_file()}
        served.create("me/guide", files)
        served.commit("me/guide", "v2", files)
        yield served


def succeeds(*words):
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_prompt_is_used_by_name(place, hub, tmp_path):
    model, words = place / "model", ("w1 w2", "--max-new-tokens", 4, "--dtype", "float32")
    there = succeeds("generate", model, "me/guide", *words)
    assert there == succeeds("generate", model, place / "run", *words)  # including the template used in training
    assert there == succeeds("generate", model, "me/guide", *words, "--revision", "v2")
    assert "default" in succeeds("inspect", model, "me/guide")
    succeeds("export", model, "me/guide", tmp_path / "peft")
    succeeds("import", model, "me/guide", tmp_path / "own")
    succeeds("bank", "add", model, tmp_path / "bank", "me/guide")
    assert list(PromptBank(tmp_path / "bank").names()) == ["guide"]
    assert not [path for path in hub.fetched() if path.endswith(".png")]


def test_what_is_not_there_is_said_before_a_model_is_read(place, hub):
    for command, *texts in (("generate", "w1"), ("evaluate",), ("inspect",)):
        assert "you have access to no repository of that name" in refusal(command, "no/model", "me/nothing", *texts)
    assert "has no revision 'v3'; expected one of main, v2" in refusal(
        "generate", place / "model", "me/guide", "w1", "--revision", "v3"
    )
    assert "is a local folder, which has none" in refusal(
        "generate", place / "model", place / "run", "w1", "--revision", "v2"
    )


def test_a_model_that_cannot_be_fetched_is_named(place, hub, monkeypatch):
    def train(name):
        return refusal("train", name, "prefix", "--data", place / "data.jsonl", "--output", place / "never")

    assert "'no/model' is not a local folder, and you have access to no repository of that name" in train("no/model")
    hub.create("me/empty")
    assert "'me/empty' cannot be fetched" in train("me/empty")
    files = {path.name: path.read_bytes() for path in (place / "model").iterdir()}
    hub.create("me/gated", files)
    hub.gated.add("me/gated")
    assert "'me/gated' is gated on the Hugging Face Hub: ask for access" in train("me/gated")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "lacks its config.json; HF_HUB_OFFLINE is set: unset it, or download it" in train("no/model")
    assert not (place / "never").exists()


def test_a_model_without_weights_is_named(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    told = refusal("generate", tmp_path / "model", place / "run", "w1")
    assert f"the weights of {tmp_path / 'model'} cannot be loaded; save the model into a folder" in told


def test_a_run_is_pushed_with_its_card_and_used_by_name(place, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", loopback_hub.TOKEN)
    told = succeeds("push", place / "run", "me/mine", "--message", "Guide")
    assert told.startswith(f"pushed {place / 'run'}: http://127.0.0.1")
    files = hub.files("me/mine")
    assert {*files} - {".gitattributes"} == {
        *("README.md", "training.json", "model.safetensors", "softprompt_zoo.json"),
        *("adapter_config.json", "adapter_model.safetensors"),
    }
    assert b"| trained prompt | 3 |" in files["README.md"]
    assert str(place).encode() not in files["training.json"] + files["README.md"]
    words = ("w1 w2", "--max-new-tokens", 4, "--dtype", "float32")
    own = succeeds("generate", place / "model", place / "run", *words)
    assert succeeds("generate", place / "model", "me/mine", *words) == own
    for name in ("nowhere", "model"):
        assert "expected what train or save_pretrained wrote" in refusal("push", place / name, "me/mine")
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refusal("push", place / "run", "me/mine")
