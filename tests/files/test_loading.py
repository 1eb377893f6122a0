"""Loading beside other prompts: under which name, and what stays as it was."""

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import softprompt_zoo as zoo
from softprompt_zoo.operations import load_and_export as saving
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text

TEXT = random_text(9, 1)


def write_with_peft(folder, seed):
    torch.manual_seed(seed)
    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(folder)


def write_with_prefix(folder, seed):
    torch.manual_seed(seed)
    zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=4).save_pretrained(folder)


def write_embeddings(folder, seed):
    torch.manual_seed(seed)
    zoo.export(zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=4), folder, to="embeddings")


WRITERS = pytest.mark.parametrize("write", [write_with_peft, write_with_prefix, write_embeddings])


def check_both(folders):
    model = zoo.load(tiny_model("llama"), folders[0])
    zoo.load(model, folders[1], name="other")
    assert (list(model.prompts), model.prompts.active) == (["default", "other"], ("other",))
    for name, folder in zip(model.prompts, folders, strict=True):
        alone = zoo.load(tiny_model("llama"), folder)
        assert_equal(model(input_ids=TEXT, prompts=name).logits, alone(input_ids=TEXT).logits, name)
    assert not torch.equal(model(input_ids=TEXT, prompts="default").logits, model(input_ids=TEXT).logits)


@WRITERS
def test_a_second_directory_is_loaded_under_another_name(write, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        write(folder, seed)
    check_both(folders)


def test_the_check_notices_a_name_that_is_not_heeded(tmp_path, monkeypatch):
    write_with_peft(tmp_path, 0)
    monkeypatch.setattr(saving, "_renamed", lambda prompts, active, name, path: (prompts, active))
    with pytest.raises(zoo.PromptExistsError, match=r"cannot be loaded: .*zoo.load\(…, name=…\)"):
        check_both([tmp_path, tmp_path])


def test_the_name_holds_on_a_bare_model_and_when_saved_again(tmp_path):
    write_with_peft(tmp_path / "theirs", 0)
    model = zoo.load(tiny_model("llama"), tmp_path / "theirs", name="mine", trainable=True)
    assert model.prompts.active == ("mine",)
    tensor = load_file(tmp_path / "theirs" / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(dict(model.prompts["mine"].named_parameters())["learned.tensors.embeddings"], tensor)
    model.save_pretrained(tmp_path / "again")
    assert list(zoo.load(tiny_model("llama"), tmp_path / "again").prompts) == ["mine"]


def test_names_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    write_with_prefix(tmp_path / "one", 0)
    model = zoo.load(tiny_model("llama"), tmp_path / "one")
    model.prompts.add("second", "prompt_tuning", num_virtual_tokens=2)
    model.save_pretrained(tmp_path / "two")
    before = model(input_ids=TEXT).logits
    for folder, name, error, reason in (
        ("two", "new", ValueError, "holds 2 prompts .'default', 'second'.; leave name out"),
        ("one", "second", zoo.PromptExistsError, "already has a prompt 'second'"),
        ("one", "a.b", ValueError, "prompt name is 'a.b'"),
        ("one", 3, ValueError, "prompt name is 3"),
    ):
        with pytest.raises(error, match=reason):
            zoo.load(model, tmp_path / folder, name=name)
        assert list(model.prompts) == ["default", "second"]
        assert torch.equal(model(input_ids=TEXT).logits, before)


@pytest.mark.parametrize("directory", [None, 1.5, ["a"], torch.zeros(2)])
def test_what_is_no_path_is_told(directory):
    model = tiny_model("llama")
    with pytest.raises(TypeError, match=r"^the directory is .*expected a path, as a string or Path$"):
        zoo.load(model, directory)
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize("model", [None, "llama", 3, {}])
def test_what_is_no_model_is_told(model):
    with pytest.raises(zoo.UnsupportedError, match=f"^cannot attach a prompt to {type(model).__name__}; expected a "):
        zoo.get_method("prompt_tuning")(model)


def test_an_adapter_of_a_peft_that_transformers_does_not_take_is_refused(tmp_path, monkeypatch):
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=4).save_pretrained(tmp_path)
    monkeypatch.setattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "99.1")
    base = tiny_model("llama")
    with pytest.raises(zoo.UnsupportedError, match=r"PEFT 99\.1 or later, and PEFT 0.* is installed"):
        zoo.load(base, tmp_path)
    assert list(base.state_dict()) == list(tiny_model("llama").state_dict())
