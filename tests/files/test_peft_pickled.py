"""PEFT's pickled adapters, `adapter_model.bin`: they give the same prompt, and do nothing else that a pickle can."""

import os
import pickle
import zipfile
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

import softprompt_zoo as zoo
from softprompt_zoo.files import pickled
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import random_text

TEXT = random_text(7, 3)
FILE = "adapter_model.bin"


@pytest.fixture
def folder(tmp_path):
    config = peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    return tmp_path


def write(folder, content, **options):
    torch.save(content, folder / FILE, **options)
    (folder / "adapter_model.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_pefts_pickled_adapter_is_the_same_prompt(config, tmp_path):
    wrapped = peft.get_peft_model(tiny_model("llama"), config(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    wrapped.save_pretrained(tmp_path / "new")
    wrapped.save_pretrained(tmp_path / "old", safe_serialization=False)
    assert (tmp_path / "old" / FILE).exists()
    expected = zoo.load(tiny_model("llama"), tmp_path / "new")(input_ids=TEXT).logits
    assert torch.equal(zoo.load(tiny_model("llama"), tmp_path / "old")(input_ids=TEXT).logits, expected)
    bank = zoo.PromptBank(f"memory://pickled-{config.__name__}", tiny_model("llama"))
    assert bank.import_folder(tmp_path / "old") == ["default"]


def test_tensors_of_other_dtypes_and_tied_ones_are_read(folder):
    table = torch.arange(6.0).reshape(2, 3)
    content = {"a": table, "b": table, "half": table.bfloat16(), "cut": torch.arange(8)[2:5]}
    write(folder, content)
    found = pickled.read_pickled(folder / FILE)
    assert list(found) == list(content)
    assert all(torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in content.items())


class Planted:
    def __reduce__(self):
        return os.system, ("touch planted",)


def refused(folder, reason, error=zoo.CheckpointError):
    model = tiny_model("llama")
    with pytest.raises(error, match=reason):
        zoo.load(model, folder)
    assert not hasattr(model, "prompts")


def check_planted(folder):
    refused(folder, r"adapter_model.bin is pickled and names '\w+ system', .*torch.load\(.*adapter_model.safetensors")
    assert not Path("planted").exists()


def test_a_pickle_that_names_more_than_tensors_is_refused_unread(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write(folder, {"prompt_embeddings": Planted()})
    check_planted(folder)
    loaded = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: loaded.append(args))
    check_planted(folder)
    assert not loaded


def test_the_check_notices_code_that_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write(folder, {"prompt_embeddings": Planted()})
    monkeypatch.setattr(pickled, "_strange_name", lambda data: None)
    monkeypatch.setattr(torch, "load", lambda file, **kwargs: _unsafe_load(file))
    with pytest.raises(AssertionError):
        check_planted(folder)


_unsafe_load = lambda file, load=torch.load: load(file, weights_only=False)  # noqa: E731


def compressed(folder):
    with zipfile.ZipFile(folder / FILE) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(folder / FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def truncated(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])


def a_pipe(folder):
    (folder / FILE).unlink()
    os.mkfifo(folder / FILE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(compressed, "is compressed"), (truncated, "is truncated"), (a_pipe, "not a regular file")],
)
def test_files_that_torch_save_does_not_write_are_refused(change, reason, folder):
    write(folder, {"prompt_embeddings": torch.zeros(4, 64)})
    change(folder)
    refused(folder, reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds list instead of"),
        ({"prompt_embeddings": 3}, "holds at 'prompt_embeddings' something other than"),
        (
            {"prompt_embeddings": torch.zeros(1).expand(10**6, 10**6)},
            "something other than a dense tensor whose numbers it has",
        ),
        ({f"key{i}": torch.zeros(10**4).expand(9, -1) for i in range(3)}, "whose numbers it has"),
        ({"prompt_embeddings": torch.eye(3).to_sparse()}, "is pickled and names 'torch._utils _rebuild_sparse_tensor'"),
        ({"prompt_embeddings": torch.nn.Linear(2, 2)}, "names 'torch.nn.modules.linear Linear'"),
        ({"prompt_embeddings": bytearray(9)}, "names '__builtin__ bytearray'"),
    ],
)
def test_content_that_is_no_dictionary_of_tensors_is_refused(content, reason, folder):
    write(folder, content)
    refused(folder, reason)


def test_older_forms_are_refused_with_how_to_convert(folder):
    write(folder, {"prompt_embeddings": torch.zeros(4, 64)}, _use_new_zipfile_serialization=False)
    refused(folder, r"torch 1.6 or later, or is truncated; .*save_file\(torch.load")
    (folder / FILE).write_bytes(pickle.dumps({"prompt_embeddings": 1}))
    refused(folder, "torch 1.6 or later")


def test_a_folder_without_numbers_names_both_files(folder):
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "has neither adapter_model.safetensors nor adapter_model.bin; copy one of them there")


def test_safetensors_win_where_both_are_there(folder):
    expected = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    torch.save({"prompt_embeddings": torch.zeros(4, 64)}, folder / FILE)
    model = zoo.load(tiny_model("llama"), folder)
    assert torch.equal(dict(model.prompts.named_parameters())["default.learned.tensors.decoder"], expected)
