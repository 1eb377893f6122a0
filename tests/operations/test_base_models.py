"""Loading a base model and its prompts in one call, and reading a folder's metadata without a model."""

import json

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.classifiers import classifier, logits, texts
from helpers.peft_prompts_moved import move_what_is_saved
from helpers.vision_models import MODELS, vision_model
from safetensors.torch import load_file, save_file

import softprompt_zoo as zoo
from softprompt_zoo.operations import base_models
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

TEXT = random_text(7, 3)


def saved_base(folder, model):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def run(model):
    inputs = {"input_ids": TEXT}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = TEXT
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(
    ("architecture", "way"),  # PEFT treats BERT as a model without a language modeling head
    [*[(name, way) for name in ("llama", "t5") for way in ("save_pretrained", "export")], ("bert", "save_pretrained")],
)
def test_base_and_prompt_come_in_one_call(architecture, way, tmp_path):
    model = zoo.get_method("prompt_tuning")(saved_base(tmp_path / "base", tiny_model(architecture)))
    model.save_pretrained(tmp_path / "prompt") if way == "save_pretrained" else zoo.export(model, tmp_path / "prompt")
    found = zoo.load_model(tmp_path / "prompt")
    assert torch.equal(run(found), run(model))
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert any(p.requires_grad for p in zoo.load_model(tmp_path / "prompt", trainable=True).prompts.parameters())


@pytest.mark.parametrize("way", ["save_pretrained", "export"])
@pytest.mark.parametrize("architecture", [*MODELS, "marian"])
def test_a_base_whose_class_is_not_named_after_its_task_comes_with_the_prompt(architecture, way, tmp_path):
    base = vision_model(architecture) if architecture in MODELS else tiny_model(architecture)
    options = {"sites": ("decoder",)} if base.config.is_encoder_decoder else {}
    model = zoo.get_method("prefix_tuning")(saved_base(tmp_path / "base", base), **options)
    model.save_pretrained(tmp_path / "prompt") if way == "save_pretrained" else zoo.export(model, tmp_path / "prompt")
    found = zoo.load_model(tmp_path / "prompt", local_files_only=True)
    assert isinstance(found, type(base))
    assert torch.equal(run(found), run(model))


@pytest.mark.parametrize("way", ["save_pretrained", "export"])
@pytest.mark.parametrize("task", ["sequence", "token", "question"])
def test_a_classifier_and_its_prompt_come_in_one_call(task, way, tmp_path):
    model = zoo.get_method("prefix_tuning")(saved_base(tmp_path / "base", classifier(task, "bert")), train_head=True)
    model.save_pretrained(tmp_path / "prompt") if way == "save_pretrained" else zoo.export(model, tmp_path / "prompt")
    assert torch.equal(logits(zoo.load_model(tmp_path / "prompt"), texts(task)), logits(model, texts(task)))


def theirs(folder, modules=None, resized=False):
    """Save a PEFT prompt and modules with all of their numbers changed; return what PEFT's own model gives."""
    base = saved_base(folder / "base", tiny_model("llama"))
    if resized:
        torch.manual_seed(7)
        base.resize_token_embeddings(102, mean_resizing=False)
    config = peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM", modules_to_save=modules)
    wrapped = peft.get_peft_model(base, config).eval()
    move_what_is_saved(wrapped)
    wrapped.save_pretrained(folder / "prompt")
    return run(wrapped)


MODULES = pytest.mark.parametrize("modules", [None, ["embed_tokens"], ["q_proj"], ["lm_head"], ["norm", "lm_head"]])


def check_theirs(folder, modules=None, resized=False):
    expected = theirs(folder, modules, resized)
    model = zoo.load_model(folder / "prompt")
    assert_equal(run(model), expected, "PEFT's logits")
    return model


@MODULES
def test_pefts_prompts_load_with_what_peft_saved_of_the_model(modules, tmp_path):
    model = check_theirs(tmp_path, modules)
    own = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "prompt").eval()
    assert_equal(run(model), run(own), "PEFT's one call")


def test_a_resized_vocabulary_comes_along_and_the_base_is_no_longer_that_of_the_name(tmp_path):
    model = check_theirs(tmp_path, resized=True)
    assert model.get_input_embeddings().weight.shape[0] == 102
    model.save_pretrained(tmp_path / "again")
    assert zoo.read_config(tmp_path / "again").base_model is None
    with pytest.raises(zoo.CheckpointError, match="does not say which model its prompts are for; name it with base="):
        zoo.load_model(tmp_path / "again")


@pytest.mark.parametrize("modules", [["embed_tokens"], ["q_proj"]])
def test_the_check_notices_weights_that_are_left_out(modules, tmp_path, monkeypatch):
    monkeypatch.setattr(base_models, "_put_weights", lambda model, weights: None)
    with pytest.raises(zoo.BackboneMismatchError):
        check_theirs(tmp_path, modules)
    monkeypatch.setattr("softprompt_zoo.files.peft_modules._is_same", lambda own, tensor: True)
    with pytest.raises(AssertionError):
        check_theirs(tmp_path / "second", modules)


def test_options_go_to_the_model_and_another_place_can_be_named(tmp_path):
    expected = theirs(tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(zoo.CheckpointError, match=r"the model '.*base'.*cannot be loaded.*another location with base="):
        zoo.load_model(tmp_path / "prompt")
    model = zoo.load_model(tmp_path / "prompt", base=tmp_path / "moved", dtype=torch.float64)
    assert model.dtype == torch.float64
    assert_equal(run(model).float(), expected, "PEFT's logits")


def test_no_code_of_files_runs(tmp_path):
    theirs(tmp_path)
    with pytest.raises(ValueError, match="runs no code from files"):
        zoo.load_model(tmp_path / "prompt", trust_remote_code=True)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config |= {
        "model_type": "planted",
        "auto_map": {n: "planted.Model" for n in ("AutoConfig", "AutoModelForCausalLM")},
    }
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(zoo.CheckpointError, match="cannot be loaded"):
        zoo.load_model(tmp_path / "prompt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os", "PreTrainedTokenizerBase", "no such class", "pipeline", "__name__"])
def test_a_class_that_is_no_model_of_transformers_is_refused(name, tmp_path):
    model = zoo.get_method("prompt_tuning")(saved_base(tmp_path / "base", tiny_model("llama")))
    model.prompts.architecture = name
    model.save_pretrained(tmp_path / "prompt")
    with pytest.raises(zoo.UnsupportedError, match="which transformers lacks; load the model, then"):
        zoo.load_model(tmp_path / "prompt")


def test_a_folder_is_described_without_a_model(tmp_path):
    needs_accepted_peft()
    model = zoo.get_method("prefix_tuning")(saved_base(tmp_path / "base", tiny_model("llama")), num_virtual_tokens=5)
    model.prompts.add("second", "prompt_tuning", num_virtual_tokens=3)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]), "lora")
    model.save_pretrained(tmp_path / "ours")
    found = zoo.read_config(tmp_path / "ours")
    assert (found.base_model, found.architecture) == (str(tmp_path / "base"), "LlamaForCausalLM")
    assert (found.active, found.adapters, list(found.prompts)) == (("default",), ("lora",), ["default", "second"])
    assert {n: (p.method, p.num_virtual_tokens) for n, p in found.prompts.items()} == {
        "default": ("prefix_tuning", 5),
        "second": ("prompt_tuning", 3),
    }
    assert found.prompts["default"].options["reparameterization"] is None


def test_folders_of_peft_and_for_engines_are_described(tmp_path):
    theirs(tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path / "prompt")
    found = zoo.read_config(tmp_path / "prompt")
    assert (found.base_model, found.task_type) == (config.base_model_name_or_path, config.task_type)
    prompt = found.prompts["default"]
    assert (prompt.method, prompt.num_virtual_tokens) == ("PREFIX_TUNING", config.num_virtual_tokens)
    assert prompt.options["prefix_projection"] is config.prefix_projection
    assert not {"peft_version", "peft_type", "task_type", "revision", "inference_mode"} & set(prompt.options)
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=6)
    zoo.export(model, tmp_path / "bare", to="embeddings")
    zoo.export(model, tmp_path / "words", to="vocabulary", tokenizer=tiny_tokenizer())
    for folder in ("bare", "words"):
        found = zoo.read_config(tmp_path / folder)
        assert (found.base_model, found.active) == (None, ("default",))
        assert found.prompts["default"].num_virtual_tokens == 6


def test_a_config_is_read_in_no_time(tmp_path):
    """No numbers or plugins are read: the file of tensors may be missing, and the method not installed."""
    theirs(tmp_path)
    path = tmp_path / "prompt" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "TELEPATHY"}))
    (tmp_path / "prompt" / "adapter_model.safetensors").unlink()
    assert zoo.read_config(tmp_path / "prompt").prompts["default"].method == "TELEPATHY"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"base_model_name_or_path": ["a"]}, r"base_model_name_or_path is \['a'\] .*; expected text or None"),
        ({"task_type": 3}, "task_type (is )?3.*; expected text or"),
        ({"peft_type": 7}, "peft_type 7"),
    ],
)
def test_damaged_configs_are_refused(change, reason, tmp_path):
    theirs(tmp_path)
    path = tmp_path / "prompt" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for call in (zoo.read_config, zoo.load_model):
        with pytest.raises(zoo.CheckpointError, match=reason):
            call(tmp_path / "prompt")


def test_a_damaged_index_is_refused(tmp_path):
    zoo.get_method("prompt_tuning")(tiny_model("llama")).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    index = json.loads((tmp_path / "softprompt_zoo.json").read_text())
    save_file(load_file(file), file, {"softprompt_zoo": json.dumps({**index, "base_model": 7})})
    with pytest.raises(zoo.CheckpointError, match="base_model is 7 "):
        zoo.read_config(tmp_path)


def test_what_is_no_folder_is_refused_with_how_to_fetch_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig()).save_pretrained(tmp_path / "lora")
    model = tiny_model("llama")
    for call in (zoo.read_config, zoo.load_model, lambda name: zoo.load(model, name)):
        with pytest.raises(zoo.CheckpointError, match="hf download somebody/their-prompt"):
            call("somebody/their-prompt")
        with pytest.raises(zoo.CheckpointError, match=r"is not a folder; expected .* adapter$"):
            call("nothing")
        with pytest.raises(zoo.CheckpointError, match="type 'LORA', which is not a prompt"):
            call("lora")
    assert not hasattr(model, "prompts")
