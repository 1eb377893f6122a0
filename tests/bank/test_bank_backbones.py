"""A bank belongs to one model: which other models are refused, and which count as the same model."""

import pytest
import torch
from helpers.bank_models import prompted

import softprompt_zoo as zoo
from softprompt_zoo.backbone import identity
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.trial.examination import examine


def test_a_bank_of_another_backbone_is_refused(address):
    model = prompted()
    zoo.PromptBank(address, model).add("words", model.prompts["words"])
    for other in (tiny_model("qwen3"), tiny_model("bert")):
        with pytest.raises(zoo.BackboneMismatchError, match=r"was made for a model with .* this one has"):
            zoo.PromptBank(address, other)
        zoo.get_method("prompt_tuning")(other, num_virtual_tokens=2)
        with pytest.raises(zoo.BackboneMismatchError, match="was made for a model with"):
            other.prompts.bank = zoo.PromptBank(address, model)
        assert other.prompts.bank is None
    wide = prompted("qwen3", ["prefix"])
    bank = zoo.PromptBank(address, model)
    with pytest.raises(zoo.BackboneMismatchError, match="prompt 'wide' does not fit"):
        bank.add("wide", wide.prompts["prefix"])
    assert list(bank) == ["words"]


def test_a_backbone_will_do_and_nothing_is_changed(tmp_path):
    model = tiny_model("llama")
    keys = list(model.state_dict())
    bank = zoo.PromptBank(tmp_path / "bank", examine(model)[0])
    assert len(bank) == 0
    assert list(model.state_dict()) == keys
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=2)
    with pytest.raises(TypeError, match=r"expected a zoo.PromptBank"):
        model.prompts.bank = {"alice": 1}


def test_another_model_of_the_same_sizes_is_refused(address):
    zoo.PromptBank(address, tiny_model("llama"))
    with pytest.raises(zoo.BackboneMismatchError, match=r"made for a model of type 'llama'; this one is 'mistral'"):
        zoo.PromptBank(address, tiny_model("mistral"))
    other = prompted(seed=5)
    with pytest.raises(zoo.BackboneMismatchError, match=r"with other weights: there the embedding of token \d+ has"):
        zoo.PromptBank(address, other)
    with pytest.raises(zoo.BackboneMismatchError, match="with other weights"):
        other.prompts.bank = zoo.PromptBank(address, tiny_model("llama"))
    assert other.prompts.bank is None
    table = (again := tiny_model("llama")).get_input_embeddings().weight.data
    zoo.PromptBank(address, again)
    table *= 1.02
    with pytest.raises(zoo.BackboneMismatchError, match="with other weights"):
        zoo.PromptBank(address, again)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "t5"])
def test_the_same_weights_in_another_format_are_the_same_model(architecture, tmp_path):
    formats = (torch.float32, torch.float16, torch.bfloat16)
    for made in formats:
        zoo.PromptBank(tmp_path / str(made), tiny_model(architecture).to(made))
        for opened in formats:
            zoo.PromptBank(tmp_path / str(made), tiny_model(architecture).to(opened))


def test_a_resized_vocabulary_is_the_same_model(tmp_path):
    zoo.PromptBank(tmp_path / "bank", tiny_model("llama"))
    for size in (200, 60, 20, 3):
        model = tiny_model("llama")
        model.resize_token_embeddings(size)
        zoo.PromptBank(tmp_path / "bank", model)


def test_where_there_are_no_values_none_are_compared(tmp_path):
    real, other = tiny_model("llama"), tiny_model("llama", seed=5)
    zoo.PromptBank(tmp_path / "bank", real)
    zoo.PromptBank(tmp_path / "bank", tiny_model("llama").to("meta"))
    with pytest.raises(zoo.BackboneMismatchError, match="of type 'llama'"):
        zoo.PromptBank(tmp_path / "bank", tiny_model("mistral").to("meta"))
    zoo.PromptBank(tmp_path / "of meta", real.to("meta"))
    zoo.PromptBank(tmp_path / "of meta", other)


def test_a_bank_that_says_its_sizes_alone_still_opens(address, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(identity, "describe", lambda backbone: {"backbone": backbone.sizes()})
        zoo.PromptBank(address, prompted()).add("words", prompted().prompts["words"])
    for model in (tiny_model("llama"), tiny_model("mistral"), tiny_model("llama", seed=5)):
        assert zoo.PromptBank(address, model)["words"].method == "prompt_tuning"
