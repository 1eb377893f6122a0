"""A save that is killed, or meets a full disk, leaves the old state or the new one, never a mix and never nothing."""

import contextlib
import os
import pathlib
import time

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft

import softprompt_zoo as zoo
from softprompt_zoo.files import peft_folder, reading, weight_adapter_files, writing
from softprompt_zoo.testing import tiny_model

OLD, NEW = 0.1, -0.2
TEXT = torch.arange(3, 9)[None]


class Killed(BaseException):
    """The end of the process, after which nothing changes a file."""


@contextlib.contextmanager
def killed_at(step, monkeypatch):
    """Make the process end at the given change to the file system."""
    changes = {"count": -1}

    def ending(function):
        def call(*args, **kwargs):
            changes["count"] += 1
            if changes["count"] >= step:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "fsync"), (pathlib.Path, "unlink"), (pathlib.Path, "mkdir")):
            patch.setattr(owner, name, ending(getattr(owner, name)))
        yield


def steps():
    return range(40)


def with_lora(value):
    needs_accepted_peft()
    model = tiny_model("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], bias="all", lora_alpha=3 if value < 0 else 5))
    return filled(zoo.get_method("prompt_tuning")(model, num_virtual_tokens=3), value)


def filled(model, value):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or name.startswith("prompts."):
                parameter.fill_(value)
    return model


def run(model):
    with torch.no_grad():
        return model.eval()(input_ids=TEXT).logits


def saved(folder):
    return run(zoo.load(tiny_model("llama"), folder))


def check_a_save_is_one_state(folder, monkeypatch):
    outputs = [run(with_lora(value)) for value in (OLD, NEW)]
    with_lora(OLD).save_pretrained(folder)
    seen = set()
    for step in steps():
        model = with_lora(NEW)
        try:
            with killed_at(step, monkeypatch):
                model.save_pretrained(folder)
        except Killed:
            found = saved(folder)
            which = [torch.equal(found, output) for output in outputs]
            assert any(which), f"a mix after change {step}"
            assert not (which[0] and True in seen), "the old state is back"
            seen.add(which[1])
        else:
            assert torch.equal(saved(folder), outputs[1])
            return seen
    raise AssertionError("the save never came to its end")


def test_prompt_and_adapter_are_saved_as_one_state(tmp_path, monkeypatch):
    assert check_a_save_is_one_state(tmp_path, monkeypatch) == {False, True}


def read_from_folders(directory, found):
    read = {name: peft_folder.read(directory / folder) for name, folder in found.items()}
    return {name: weight_adapter_files.SavedAdapter(fields, tensors) for name, (fields, tensors, _) in read.items()}


def test_adapters_that_are_read_from_their_folders_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_adapter_files, "read", read_from_folders)
    with pytest.raises(AssertionError, match="a mix"):
        check_a_save_is_one_state(tmp_path, monkeypatch)


def test_a_folder_of_an_earlier_version_loads(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(weight_adapter_files, "pack", lambda adapters: ({}, {}))
        with_lora(OLD).save_pretrained(tmp_path)
    assert torch.equal(saved(tmp_path), run(with_lora(OLD)))


def test_a_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    with_lora(OLD).save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            with_lora(NEW).save_pretrained(tmp_path)
    assert torch.equal(saved(tmp_path), run(with_lora(OLD)))
    assert not [path for path in tmp_path.rglob(".*")]


def full(*args):
    raise OSError(28, "No space left on device")


def prompt(value, count):
    return filled(zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=count), value)


def in_peft(folder):
    """Return an export's rows and value as PEFT sees them, `None` if it finds no export, or its error."""
    try:
        model = peft.PeftModel.from_pretrained(tiny_model("llama"), folder)
    except ValueError as error:
        return None if "Can't find" in str(error) else str(error)
    weight = model.prompt_encoder["default"].embedding.weight
    return len(weight), round(weight.mean().item(), 3)


def in_zoo(folder):
    found = zoo.load(tiny_model("llama"), folder).prompts["default"]
    [weight] = found.parameters()
    return len(weight), round(weight.mean().item(), 3)


def check_an_export_is_one_state(folder, counts, monkeypatch):
    states = [(count, value) for count, value in zip(counts, (OLD, NEW), strict=True)]
    zoo.export(prompt(OLD, counts[0]), folder)
    for step in steps():
        model = prompt(NEW, counts[1])
        try:
            with killed_at(step, monkeypatch):
                zoo.export(model, folder)
        except Killed:
            assert in_zoo(folder) in states
            assert in_peft(folder) in [*states, None]
        else:
            assert in_zoo(folder) == in_peft(folder) == states[1]
            return
    raise AssertionError("the export never came to its end")


@pytest.mark.parametrize("counts", [(4, 4), (4, 6), (6, 4)])
def test_an_export_over_another_is_the_old_or_the_new(counts, tmp_path, monkeypatch):
    check_an_export_is_one_state(tmp_path, counts, monkeypatch)


def one_after_the_other(contents, removed_first=()):
    for path, content in contents.items():
        writing.replace_files({path: content})


def test_files_written_one_after_the_other_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(peft_folder, "replace_files", one_after_the_other)
    with pytest.raises((AssertionError, zoo.CheckpointError, RuntimeError)):
        check_an_export_is_one_state(tmp_path, (6, 4), monkeypatch)


def test_an_export_to_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    zoo.export(prompt(OLD, 4), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            zoo.export(prompt(NEW, 6), tmp_path)
    assert in_zoo(tmp_path) == in_peft(tmp_path) == (4, OLD)


@pytest.mark.parametrize("other", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_of_two_exports_are_refused(other, tmp_path):
    zoo.export(prompt(OLD, 4), tmp_path / "one")
    zoo.export(prompt(NEW, 6), tmp_path / "two")
    os.replace(tmp_path / "two" / other, tmp_path / "one" / other)
    with pytest.raises(zoo.CheckpointError, match=r"num_virtual_tokens = .*: they are files of two adapters"):
        zoo.load(tiny_model("llama"), tmp_path / "one")


def test_a_damaged_header_is_no_adapter_and_may_be_replaced(tmp_path):
    zoo.export(prompt(OLD, 4), tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    path = tmp_path / "adapter_model.safetensors"
    tensors, metadata = reading.read_tensors(path)
    writing.write_tensors(
        path, {key: t.clone() for key, t in tensors.items()}, {**metadata, "softprompt_zoo_config": "["}
    )
    with pytest.raises(zoo.CheckpointError, match="it holds no saved prompt"):
        zoo.load(tiny_model("llama"), tmp_path)
    zoo.export(prompt(NEW, 6), tmp_path)
    assert in_zoo(tmp_path) == (6, NEW)


def test_a_config_may_name_another_base(tmp_path):
    zoo.export(prompt(OLD, 4), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"base_model_name_or_path": null', '"base_model_name_or_path": "mine"'))
    assert in_zoo(tmp_path) == (4, OLD)


def test_more_rows_than_the_config_says_are_refused(tmp_path):
    own = peft.get_peft_model(tiny_model("llama"), peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    own.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"num_virtual_tokens": 4', '"num_virtual_tokens": 3'))
    with pytest.raises(zoo.CheckpointError, match="says 3 virtual tokens, but its tensor has 4"):
        zoo.load(tiny_model("llama"), tmp_path)


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "umask", lambda mask: asked.append(mask) or 0o022)
    writing.write_json(tmp_path / "ours.json", {})
    (tmp_path / "other.json").write_text("{}")
    assert (tmp_path / "ours.json").stat().st_mode == (tmp_path / "other.json").stat().st_mode
    assert not asked, "the mask is the whole process'"


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path, monkeypatch):
    with contextlib.suppress(Killed), killed_at(0, monkeypatch):
        writing.write_json(tmp_path / "a.json", {})
    [left] = tmp_path.iterdir()
    (tmp_path / ".a.json.backup").write_text("not ours")
    writing.write_json(tmp_path / "a.json", {})
    assert left.exists(), "somebody may be writing it"
    os.utime(left, (0, time.time() - 2 * writing.ORPHANED_SECONDS))
    writing.write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.json.backup", "a.json"]
