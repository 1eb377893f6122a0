"""Exports in which PEFT needs more than the prompt: the head of a task, and sizes that are not in a config."""

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.classifiers import classifier, disturb, logits, texts
from transformers import XGLMConfig, XGLMForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.files import peft_export, peft_modules
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text

TEXT = random_text(7, 3)
HEADED = [
    *[(task, name, "prefix_tuning") for task in ("sequence", "token", "question") for name in ("bert", "gpt2")],
    *[("sequence", name, "prefix_tuning") for name in ("roberta", "electra", "llama")],
    *[("sequence", name, "prompt_tuning") for name in ("llama", "gpt2")],
]


def in_peft(model, folder, ids):
    needs_accepted_peft()
    wrapped = peft.PeftModel.from_pretrained(model, folder).eval()
    return logits(wrapped, ids, attention_mask=torch.ones_like(ids))


def check_head(task, architecture, method, folder):
    ids = texts(task)
    model = zoo.get_method(method)(classifier(task, architecture), num_virtual_tokens=4)
    disturb(model)
    assert model.prompts["default"].head is None
    zoo.export(model, folder)
    assert_equal(in_peft(classifier(task, architecture), folder, ids), logits(model, ids), "PEFT's logits")
    return model


@pytest.mark.parametrize(("task", "architecture", "method"), HEADED)
def test_a_prompt_under_a_head_that_was_not_trained_loads_in_peft(task, architecture, method, tmp_path):
    model = check_head(task, architecture, method, tmp_path)
    ids = texts(task)
    assert torch.equal(logits(zoo.load(classifier(task, architecture), tmp_path), ids), logits(model, ids))


@pytest.mark.parametrize("way", ["export", "save_pretrained"])
def test_the_models_own_head_is_in_the_file_and_not_one_that_peft_starts_at_random(way, tmp_path):
    model = zoo.get_method("prefix_tuning")(classifier("sequence", "bert"), num_virtual_tokens=4)
    disturb(model)
    zoo.export(model, tmp_path) if way == "export" else model.save_pretrained(tmp_path)
    other = classifier("sequence", "bert")
    other.classifier.weight.data.zero_()
    assert_equal(in_peft(other, tmp_path, texts("sequence")), logits(model, texts("sequence")), "PEFT's logits")


def test_the_check_notices_a_head_that_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(peft_modules, "needs_head", lambda files, task: False)
    with pytest.raises(KeyError):
        check_head("sequence", "bert", "prefix_tuning", tmp_path)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("task", ["sequence", "question"])
@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_task_heads_of_encoder_decoders_are_refused(task, architecture, method, tmp_path):
    options = {"sites": ("decoder",)} if method == "prefix_tuning" else {}
    model = zoo.get_method(method)(classifier(task, architecture), num_virtual_tokens=4, **options)
    with pytest.raises(zoo.UnsupportedError, match="head of an encoder-decoder"):
        zoo.export(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def xglm():
    sizes = {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64}
    torch.manual_seed(0)
    return XGLMForCausalLM(XGLMConfig(vocab_size=101, dropout=0.0, **sizes)).eval()


SIZELESS = {"xglm": xglm, **{name: (lambda name=name: tiny_model(name)) for name in ("distilbert", "mpt")}}


def check_sizes(architecture, method, folder):
    model = zoo.get_method(method)(SIZELESS[architecture](), num_virtual_tokens=4)
    zoo.export(model, folder)
    inputs = {"input_ids": TEXT, "attention_mask": torch.ones_like(TEXT)}
    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(SIZELESS[architecture](), folder).eval()(**inputs).logits
        assert_equal(found[:, -TEXT.shape[1] :], model(**inputs).logits, "PEFT's logits")


@pytest.mark.parametrize(
    ("architecture", "method"),
    [(name, method) for name in SIZELESS for method in ("prompt_tuning", "p_tuning")]
    + [("xglm", "prefix_tuning"), ("mpt", "prefix_tuning")],
)
def test_sizes_that_peft_does_not_find_in_the_config_are_in_the_file(architecture, method, tmp_path):
    check_sizes(architecture, method, tmp_path)


def test_the_check_notices_sizes_that_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(peft_export, "_with_sizes", lambda files, backbone: files)
    with pytest.raises(ValueError, match="Please specify `num_"):
        check_sizes("xglm", "prompt_tuning", tmp_path)
