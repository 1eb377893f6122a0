"""Commands on prompts that are named by their repository on the hub."""

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
    assert there == succeeds("generate", model, place / "run", *words)  # the template of the training, too
    assert there == succeeds("generate", model, "me/guide", *words, "--revision", "v2")
    assert "default" in succeeds("inspect", model, "me/guide")
    succeeds("export", model, "me/guide", tmp_path / "peft")
    succeeds("import", model, "me/guide", tmp_path / "own")
    succeeds("bank", "add", model, tmp_path / "bank", "me/guide")
    assert list(PromptBank(tmp_path / "bank").names()) == ["guide"]
    assert not [path for path in hub.fetched() if path.endswith(".png")]


def test_what_is_not_there_is_said_before_a_model_is_read(place, hub):
    for command, *texts in (("generate", "w1"), ("evaluate",), ("inspect",)):
        assert "you can see no repository of that name" in refusal(command, "no/model", "me/nothing", *texts)
    assert "has no revision 'v3'; expected one of main, v2" in refusal(
        "generate", place / "model", "me/guide", "w1", "--revision", "v3"
    )
    assert "is a folder here, which has none" in refusal(
        "generate", place / "model", place / "run", "w1", "--revision", "v2"
    )
