"""Directories: what is written, what is refused, and that a refusal changes nothing."""

import json
import os
import shutil
import sys

import peft
import pytest
import torch
from helpers.prompted import prompted
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import softprompt_zoo as zoo
from softprompt_zoo.files import prompt_folder
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text

TEXT = random_text(9, 1)
OURS = {"model.safetensors", "softprompt_zoo.json", "README.md"}
FILES = OURS | {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def saved(tmp_path):
    subject = prompted()
    subject.model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def refused(directory, error, text, architecture="llama"):
    model = tiny_model(architecture)
    before = Subject(architecture, model).logits(TEXT)
    with pytest.raises(error, match=text):
        zoo.load(model, directory)
    assert not hasattr(model, "prompts")
    assert torch.equal(Subject(architecture, model).logits(TEXT), before)


def test_a_directory_is_small_and_complete(saved):
    assert {path.name for path in saved.iterdir()} == FILES
    tensors = load_file(saved / "model.safetensors")
    assert all(key.startswith("prompts.default.") for key in tensors)
    index = json.loads((saved / "softprompt_zoo.json").read_text())
    assert index["prompts"]["default"]["method"] == "prefix_tuning"
    assert index["prompts"]["default"]["config"]["num_virtual_tokens"] == 4
    assert index["active"] == ["default"]


def test_saving_beside_other_files(saved):
    (saved / "notes.txt").write_text("mine")
    prompted().model.save_pretrained(saved)
    assert {path.name for path in saved.iterdir()} == FILES | {"notes.txt"}
    two = prompted()
    two.model.prompts.add("second", "prompt", num_virtual_tokens=2)
    two.model.prompts.activate("default", "second")
    two.model.save_pretrained(saved)
    assert {path.name for path in saved.iterdir()} == OURS | {"notes.txt"}


def test_several_prompts_come_back_in_order(tmp_path):
    subject = prompted()
    subject.model.prompts.add("alice", "prompt", num_virtual_tokens=2, init="random")
    subject.model.prompts.add("Bob-2", "prefix", num_virtual_tokens=3, reparameterization="mlp", dropout=0.1)
    subject.model.prompts.activate("Bob-2", "default")
    subject.model.save_pretrained(tmp_path)
    loaded = Subject("llama", zoo.load(tiny_model("llama"), tmp_path))
    assert list(loaded.model.prompts) == ["default", "alice", "Bob-2"]
    assert loaded.model.prompts.active == ("Bob-2", "default")
    assert torch.equal(loaded.logits(TEXT), subject.logits(TEXT))
    assert torch.equal(loaded.logits(TEXT, prompts=["alice"]), subject.logits(TEXT, prompts=["alice"]))
    assert loaded.model.prompts["Bob-2"].config.dropout == 0.1
    assert not any(p.requires_grad for p in loaded.model.parameters())
    carol = zoo.get_method("prompt")(tiny_model("llama"), "carol", num_virtual_tokens=2)
    carol.save_pretrained(tmp_path / "carol")
    zoo.load(loaded.model, tmp_path / "carol")
    assert loaded.model.prompts.active == ("carol",)


def test_only_active_prompts_need_room_together(tmp_path):
    model = zoo.get_method("prompt")(tiny_model("gpt2"), "p0", num_virtual_tokens=30)  # of 64 positions
    for name in ("p1", "p2"):
        model.prompts.add(name, "prompt", num_virtual_tokens=30)
    model.save_pretrained(tmp_path / "three")
    loaded = zoo.load(tiny_model("gpt2"), tmp_path / "three")
    assert loaded.prompts.active == ("p0",)
    for name in ("p0", "p1", "p2"):
        assert torch.equal(loaded(TEXT, prompts=name).logits, model.eval()(TEXT, prompts=name).logits)


def _trained(folder, **options):
    model = zoo.load(tiny_model("llama"), folder, **options)
    return sorted({name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad})


def test_a_prompt_that_was_frozen_stays_frozen(tmp_path):
    model = zoo.combine("prompt_tuning", "prefix_tuning")(tiny_model("llama"))
    both = ["prefix_tuning", "prompt_tuning"]
    model.save_pretrained(tmp_path / "both")
    assert _trained(tmp_path / "both", trainable=True) == both
    model.prompts["prompt_tuning"].requires_grad_(False)
    model.save_pretrained(tmp_path / "one")
    assert _trained(tmp_path / "one", trainable=True) == ["prefix_tuning"]
    assert _trained(tmp_path / "one") == []
    zoo.merge(model).save_pretrained(tmp_path / "merged")
    assert _trained(tmp_path / "merged", trainable=True) == ["prefix_tuning"]
    model.prompts.requires_grad_(False)
    model.save_pretrained(tmp_path / "none")
    assert _trained(tmp_path / "none", trainable=True) == both
    _change_index(tmp_path / "one", lambda index: [record.pop("is_trained") for record in index["prompts"].values()])
    assert _trained(tmp_path / "one", trainable=True) == both


def _change_index(folder, change):
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        index = json.loads(file.metadata()["softprompt_zoo"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(index)
    save_file(tensors, path, {"softprompt_zoo": json.dumps(index)})


def test_peft_need_not_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = zoo.get_method("prefix")(tiny_model("llama"), num_virtual_tokens=3)
    model.save_pretrained(tmp_path / "saved")
    zoo.export(model, tmp_path / "exported", to="peft")
    text = torch.tensor([[5, 6, 7]])
    for folder in ("saved", "exported"):
        loaded = zoo.load(tiny_model("llama"), tmp_path / folder)
        assert torch.equal(loaded(text).logits, model.eval()(text).logits)
        zoo.detach(zoo.merge(loaded))


def test_active_names_that_are_not_there_are_refused(saved):
    _change_index(saved, lambda index: index.update(active=["gone"]))
    refused(saved, zoo.CheckpointError, "says that 'gone' is active, but holds no such prompt")


def test_merged_prompts_save_and_load(tmp_path):
    subject = prompted(reparameterization="mlp", reparameterization_size=16)
    expected = subject.logits(TEXT)
    before = subject.model.prompts["default"].num_parameters
    zoo.merge(subject.model)
    assert subject.model.prompts["default"].num_parameters < before
    subject.model.save_pretrained(tmp_path)
    loaded = Subject("llama", zoo.load(tiny_model("llama"), tmp_path))
    assert loaded.model.prompts["default"].is_merged
    assert_equal(loaded.logits(TEXT), expected, "merged and loaded")


def test_init_from_another_prompt(tmp_path):
    source = prompted(method="prompt_tuning")
    expected = source.logits(TEXT)
    source.model.save_pretrained(tmp_path)
    for start in (source.model.prompts["default"], str(tmp_path), tmp_path):
        model = zoo.get_method("prompt")(tiny_model("llama"), num_virtual_tokens=4, init=start)
        assert_equal(Subject("llama", model).logits(TEXT), expected, "started from another prompt")
        model.save_pretrained(tmp_path / "again")
        zoo.load(tiny_model("llama"), tmp_path / "again")
        index = json.loads((tmp_path / "again" / "softprompt_zoo.json").read_text())
        assert index["prompts"]["default"]["config"]["init"] == "given"
    with pytest.raises(ValueError, match="init is a prompt of 4 virtual tokens; set num_virtual_tokens to that, not 7"):
        zoo.get_method("prompt")(tiny_model("llama"), num_virtual_tokens=7, init=source.model.prompts["default"])
    with pytest.raises(zoo.UnsupportedError, match="cannot start from this prompt"):
        zoo.get_method("prefix")(tiny_model("llama"), num_virtual_tokens=4, init=source.model.prompts["default"])


@pytest.mark.parametrize("name", ["model.safetensors", "softprompt_zoo.json"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.95])
def test_truncated_files(saved, name, keep):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(len(content) * keep)])
    refused(saved, zoo.CheckpointError, f"{name} is truncated")


def test_missing_files_and_folders(saved, tmp_path):
    refused(tmp_path / "nowhere", zoo.CheckpointError, "nowhere is not a folder; expected one written by save_")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", zoo.CheckpointError, "none of softprompt_zoo.json, adapter_config.json, ")
    (saved / "model.safetensors").unlink()
    refused(saved, zoo.CheckpointError, "model.safetensors is missing; save the prompt again")


def test_foreign_and_mislabeled_tensors(saved):
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors, saved / "model.safetensors")
    refused(saved, zoo.CheckpointError, "was not written by softprompt_zoo")
    index, _ = _index(prompted())
    renamed = {key.replace(".default.", ".other."): tensor for key, tensor in tensors.items()}
    prompt_folder.write(saved, index, renamed)
    refused(
        saved,
        zoo.CheckpointError,
        r"holds the tensor 'prompts.other.+', which belongs to no prompt in its index \(default\)",
    )
    prompt_folder.write(saved, index, {})
    refused(saved, zoo.CheckpointError, r"tensor 'learned.+' is missing; expected shape \(4, 64\)")
    prompt_folder.write(saved, index, {key: tensor[:2] for key, tensor in tensors.items()})
    refused(saved, zoo.CheckpointError, r"has shape \(2, 64\); expected \(4, 64\)")


def _index(subject):
    host = subject.model.prompts
    record = prompt_folder.IndexEntry("prefix_tuning", "softprompt-zoo", "0.1.0", False, {"num_virtual_tokens": 4})
    return prompt_folder.Index(host.backbone.sizes(), ("default",), {"default": record}), host


def test_later_formats_and_unknown_methods(saved, monkeypatch):
    index, _ = _index(prompted())
    tensors = load_file(saved / "model.safetensors")
    version = zoo.get_method("prefix")._loaded.version
    record = prompt_folder.IndexEntry("mixture", "softprompt-zoo-mixture", "0.2", False, {})
    prompt_folder.write(saved, prompt_folder.Index(index.backbone, (), {"default": record}), tensors)
    refused(saved, zoo.UnknownMethodError, r"not installed; run: pip install softprompt-zoo-mixture==0.2")
    options = {"num_virtual_tokens": 4, "depth": 1}
    record = prompt_folder.IndexEntry("prefix_tuning", "softprompt-zoo", version, False, options)
    prompt_folder.write(saved, prompt_folder.Index(index.backbone, (), {"default": record}), tensors)
    refused(saved, zoo.CheckpointError, "does not fit its method 'prefix_tuning': unknown option 'depth'")
    for other, options in (("0.0.9", {"depth": 1}), ("99", {})):
        record = prompt_folder.IndexEntry(
            "prefix_tuning", "softprompt-zoo", other, False, {"num_virtual_tokens": 3, **options}
        )
        prompt_folder.write(saved, prompt_folder.Index(index.backbone, (), {"default": record}), tensors)
        text = rf"which was saved with softprompt-zoo {other} and is read with softprompt-zoo {version}"
        refused(saved, zoo.CheckpointError, text)
    monkeypatch.setattr(prompt_folder, "FORMAT_VERSION", 99)
    prompt_folder.write(saved, index, tensors)
    monkeypatch.undo()
    refused(saved, zoo.CheckpointError, "has format 99, this version reads 1; upgrade softprompt-zoo")


def test_another_backbone(saved):
    refused(saved, zoo.BackboneMismatchError, "was made for a model with layers .*this one has .*made for", "gpt2")
    prompted("t5", "prompt_tuning").model.save_pretrained(saved)
    refused(saved, zoo.BackboneMismatchError, "with family 'encoder_decoder'; this one has 'causal'")


def test_a_taken_name_on_load(saved):
    subject = prompted()
    expected = subject.logits(TEXT)
    with pytest.raises(zoo.PromptExistsError, match="already has a prompt 'default'"):
        zoo.load(subject.model, saved)
    assert torch.equal(subject.logits(TEXT), expected)


def test_saving_where_a_file_is(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(zoo.CheckpointError, match="taken is a file; expected a folder"):
        prompted().model.save_pretrained(tmp_path / "taken")


def test_a_models_own_weights_are_not_overwritten(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(zoo.CheckpointError, match="holds the weights of a model"):
        prompted().model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_adapter_is_not_overwritten(tmp_path):
    """An export beside saved prompts is refused too, because it would never be read."""
    model = prompted().model
    lora = tmp_path / "lora"
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig()).save_pretrained(lora)
    model.save_pretrained(tmp_path / "saved")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for write in (model.save_pretrained, lambda folder: zoo.export(model, folder)):
        with pytest.raises(zoo.CheckpointError, match="lora holds a PEFT adapter of type 'LORA'"):
            write(lora)
    with pytest.raises(zoo.CheckpointError, match=r"zoo\.load would read instead of the export"):
        zoo.export(model, tmp_path / "saved")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    zoo.export(model, tmp_path / "new")
    zoo.export(model, tmp_path / "new")
    model.save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("fail_at", range(5))
def test_a_failed_write_leaves_prompts_that_load(saved, monkeypatch, fail_at):
    expected = Subject("llama", zoo.load(tiny_model("llama"), saved)).logits(TEXT)
    before = {path.name for path in saved.iterdir()}
    calls, replace = iter(range(10)), os.replace

    def replace_until_full(source, target):
        if next(calls) == fail_at:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_until_full)
    with pytest.raises(OSError, match="disk full"):
        prompted(num_virtual_tokens=6).model.save_pretrained(saved)
    monkeypatch.undo()
    loaded = Subject("llama", zoo.load(tiny_model("llama"), saved))
    assert loaded.model.prompts["default"].num_virtual_tokens in (4, 6)
    if loaded.model.prompts["default"].num_virtual_tokens == 4:
        assert torch.equal(loaded.logits(TEXT), expected)
    after = {path.name for path in saved.iterdir()}
    assert after <= before
    assert before - after <= {"adapter_config.json"}, "PEFT's copy is whole or none"


@pytest.mark.parametrize(("architecture", "method"), [("llama", "prompt_tuning"), ("t5", "prefix_tuning")])
def test_a_fresh_process_gives_the_same(architecture, method, fresh_processes, tmp_path):
    subject = prompted(architecture, method)
    subject.model.save_pretrained(tmp_path / "saved")
    save_file({"logits": subject.logits(TEXT)}, tmp_path / "logits.safetensors")
    code = f"""
import torch
import softprompt_zoo as zoo
from safetensors.torch import load_file
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import Subject, random_text
subject = Subject({architecture!r}, zoo.load(tiny_model({architecture!r}), "saved"))
assert torch.equal(subject.logits(random_text(9, 1)), load_file("logits.safetensors")["logits"])
"""
    fresh_processes.run(code, tmp_path)


def test_moved_folders_load(saved, tmp_path):
    shutil.move(saved, tmp_path / "elsewhere")
    zoo.load(tiny_model("llama"), tmp_path / "elsewhere")
