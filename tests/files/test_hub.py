"""Prompts on a hub that the tests serve themselves: fetched by name, pushed, or refused with a message."""

import peft
import pytest
import torch
from helpers import loopback_hub
from helpers.accepted_peft import needs_accepted_peft
from helpers.loopback_hub import TOKEN
from helpers.prompted import prompted
from huggingface_hub import ModelCard, constants

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

IDS = torch.randint(3, 101, (2, 7), generator=torch.Generator().manual_seed(0))
OURS = ["model.safetensors", "softprompt_zoo.json"]
PEFTS = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with loopback_hub.serve(monkeypatch, tmp_path / "cache") as served:
        yield served


@pytest.fixture(scope="module")
def model():
    return prompted().model.eval()


@pytest.fixture
def files(model, tmp_path):
    """The files of a saved prefix, by path."""
    return saved(model, tmp_path / "saved")


def saved(model, folder):
    model.save_pretrained(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(model, other):
    return torch.equal(model(input_ids=IDS).logits, other(input_ids=IDS).logits)


def refused(message, *arguments, error=zoo.HubError, **how):
    base = tiny_model("llama")
    with pytest.raises(error, match=message):
        zoo.load(base, *arguments, **how)
    assert not hasattr(base, "prompts")


def test_only_what_a_prompt_needs_is_fetched_and_once(hub, model, files):
    others = {"pytorch_model.bin": b"weights", "checkpoint-5/model.safetensors": b"old", "notes.md": b"mine"}
    hub.create("me/prompt", files | others)
    assert same(model, zoo.load(tiny_model("llama"), "me/prompt"))
    assert hub.fetched() == ["adapter_config.json", *OURS]  # the config too: PEFT's might be the only files
    assert zoo.read_config("me/prompt").prompts["default"].method == "prefix_tuning"
    assert hub.fetched() == []


def test_peft_files_and_exports_are_fetched_by_name(hub, model, files, tmp_path):
    hub.create("me/peft", {name: files[name] for name in PEFTS})
    assert zoo.load(tiny_model("llama"), "me/peft").prompts.active == ("default",)
    zoo.export(model, tmp_path / "kv", to="kv")
    hub.create("me/kv", {path.name: path.read_bytes() for path in (tmp_path / "kv").iterdir()})
    hub.fetched()
    assert zoo.load(tiny_model("llama"), "me/kv").prompts.active == ("default",)
    assert hub.fetched() == ["prefix.json", "prefix.safetensors"]


def test_a_revision_is_a_branch_or_a_commit(hub, model, files, tmp_path):
    old = hub.create("me/prompt", files)
    other = prompted(num_virtual_tokens=2).model.eval()
    hub.commit("me/prompt", "short", saved(other, tmp_path / "other"))
    assert same(other, zoo.load(tiny_model("llama"), "me/prompt", revision="short"))
    assert same(model, zoo.load(tiny_model("llama"), "me/prompt", revision=old))
    refused(r"has no revision 'long'; expected one of main, short, or a commit", "me/prompt", revision="long")


def test_a_folder_of_that_name_wins(hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(model, tmp_path / "me" / "prompt")
    assert same(model, zoo.load(tiny_model("llama"), "me/prompt"))
    assert hub.requests == []
    refused(r"revision is 'main', but 'me/prompt' is a local folder", "me/prompt", revision="main", error=ValueError)


def test_what_cannot_be_fetched(hub, files, monkeypatch):
    refused(r"'me/nothing' is not a local folder, and you have access to no repository .* hf auth login", "me/nothing")
    hub.create("me/model", {"config.json": b"{}", "model.safetensors": b"weights"})
    refused(r"'me/model' on the Hugging Face Hub holds no prompt: it has none of softprompt_zoo\.json", "me/model")
    assert not [path for _, path in hub.requests if path.endswith("model.safetensors")]
    hub.create("me/lora", {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"large"})
    refused("PEFT adapter of type 'LORA', which is not a prompt", "me/lora")
    hub.create("me/other", {"adapter_config.json": b'{"architecture": "houlsby"}'})
    refused("another library's adapter: its adapter_config.json names no peft_type; load it with the li", "me/other")
    hub.create("me/gated", files)
    hub.gated.add("me/gated")
    refused(rf"'me/gated' is gated .*: ask for access at {constants.ENDPOINT}/me/gated", "me/gated")
    assert zoo.load(tiny_model("llama"), "me/gated", token=TOKEN).prompts.active == ("default",)
    hub.create("me/cut", {"softprompt_zoo.json": files["softprompt_zoo.json"]})
    refused(r"model\.safetensors is missing", "me/cut", error=zoo.CheckpointError)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "it may be gated or private: ask for access at .*/me/prompt, then .*hf auth login"),
        (403, "it may be gated or private: ask for access at .*/me/prompt, then .*hf auth login"),
        (429, "wait a few minutes"),
        (500, "try again later"),
    ],
)
def test_what_the_hub_answered_is_said_with_what_to_do(hub, files, monkeypatch, status, advice):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client retries a busy hub
    hub.create("me/prompt", files)
    hub.failing["me/prompt"] = status
    refused(rf"'me/prompt' cannot be fetched: {constants.ENDPOINT} answered .*{status}.*{advice}", "me/prompt")


def test_without_a_network_the_cache_is_used_and_what_is_missing_is_said(hub, model, files, monkeypatch):
    hub.create("me/prompt", files)
    zoo.read_config("me/prompt")
    for name, value in (("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")):
        with monkeypatch.context() as patched:
            patched.setattr(constants, name, value)
            loopback_hub.close_session()
            assert same(model, zoo.load(tiny_model("llama"), "me/prompt"))
            why = "HF_HUB_OFFLINE is set.*hf download me/other$" if value is True else "9 cannot be reached"
            refused(
                rf"'me/other' is not a local folder, and the cache .* lacks its softprompt_zoo\.json or .*{why}",
                "me/other",
            )
            why = "while HF_HUB_OFFLINE is set" if value is True else ".*9 cannot be reached .*check the network"
            with pytest.raises(zoo.HubError, match=f"'me/prompt' cannot be pushed.*{why}"):
                model.push_to_hub("me/prompt")
        loopback_hub.close_session()


def test_a_pushed_prompt_is_loaded_by_name_here_and_by_peft(hub, model):
    told = model.push_to_hub("me/pushed", token=TOKEN, commit_message="First", tags=["guide"])
    assert told.commit_message == "First"
    there = hub.files("me/pushed")
    assert sorted(there) == sorted([".gitattributes", "README.md", *PEFTS, *OURS])
    assert same(model, zoo.load(tiny_model("llama"), "me/pushed"))
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), "me/pushed").eval()
    torch.testing.assert_close(theirs(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    card = ModelCard(there["README.md"].decode())
    assert 'zoo.load(base, "me/pushed")' in card.text
    assert {"guide", "prefix-tuning", "peft"} <= set(card.data.tags)
    card.validate()


def test_both_ways_push_the_same(hub, model, tmp_path):
    model.push_to_hub("me/one", token=TOKEN)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/two", token=TOKEN)
    model.save_pretrained(tmp_path / "named", push_to_hub=True, token=TOKEN)
    one = hub.files("me/one")
    for name in ("me/two", "me/named"):
        other = hub.files(name)
        assert one.keys() == other.keys()
        assert one["softprompt_zoo.json"] == other["softprompt_zoo.json"]
        assert same(model, zoo.load(tiny_model("llama"), name))
        assert f'zoo.load(base, "{name}")' in other["README.md"].decode()
    with pytest.raises(TypeError, match="got repo_id without push_to_hub=True"):
        model.save_pretrained(tmp_path / "new", repo_id="me/two")
    assert not (tmp_path / "new").exists()


def test_a_prompt_replaces_one_and_a_card_that_was_changed_stays(hub, tmp_path):
    first = prompted().model
    first.push_to_hub("me/prompt", token=TOKEN)
    first.prompts.add("second", "prompt", num_virtual_tokens=2)
    first.prompts.activate("default", "second")
    mine = hub.files("me/prompt")["README.md"] + b"\nWritten for museums.\n"
    hub.commit("me/prompt", "main", hub.files("me/prompt") | {"README.md": mine, "picture.png": b"png"})
    first.push_to_hub("me/prompt", token=TOKEN)
    there = hub.files("me/prompt")
    assert sorted(there) == sorted([".gitattributes", "README.md", "picture.png", *OURS])  # PEFT's files were outdated
    assert there["README.md"] == mine
    assert list(zoo.read_config("me/prompt").prompts) == ["default", "second"]
    first.push_to_hub("me/prompt", names="second", token=TOKEN, revision="short")
    assert list(zoo.read_config("me/prompt", revision="short").prompts) == ["second"]


def test_adapters_travel_with_a_prompt(hub):
    needs_accepted_peft()
    model = tiny_model("llama")
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "lora")
    model = zoo.get_method("prefix")(model, num_virtual_tokens=3).eval()
    model.push_to_hub("me/both", token=TOKEN)
    assert "adapters/lora/adapter_config.json" in hub.files("me/both")
    assert b"PEFT cannot load it" in hub.files("me/both")["README.md"]
    assert same(model, zoo.load(tiny_model("llama"), "me/both").eval())


def test_what_cannot_be_pushed(hub, model):
    hub.create("me/model", {"config.json": b"{}", "model.safetensors": b"weights"})
    before = dict(hub.files("me/model"))
    for name, how, message in (
        ("me/model", {"token": TOKEN}, r"'me/model' on the hub holds a model \(config\.json\)"),
        ("me/new", {}, r"'me/new' cannot be pushed .* hf auth login"),
        ("others/new", {"token": TOKEN}, r"'others/new' cannot be pushed .* rights to create a model .* hf auth login"),
    ):
        with pytest.raises(zoo.HubError, match=message):
            model.push_to_hub(name, **how)
    assert hub.files("me/model") == before
    assert list(hub.repositories) == ["me/model"]


def test_prompts_push_themselves(hub, model):
    model.prompts.push_to_hub("me/own", token=TOKEN)
    assert same(model, zoo.load(tiny_model("llama"), "me/own"))
