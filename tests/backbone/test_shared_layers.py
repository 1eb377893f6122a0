"""Models that share layers: only one of them can take prompts, and refusing the other changes nothing."""

import copy

import pytest
import torch
from helpers.products import in_turns
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.trial import examination

IDS = torch.arange(4, 10).repeat(2, 1)
ARCHITECTURES = ["llama", "gpt2", "bloom", "bert", "mpnet", "t5"]
"""Causal, with its own positions, through the cache, an encoder, off the attention interface, an encoder-decoder."""


def logits(model):
    inputs = {"decoder_input_ids": IDS} if hasattr(model.base_model, "decoder") else {}
    with torch.no_grad():
        output = model(input_ids=IDS, **inputs)
    return output.logits if "logits" in output else output.last_hidden_state


def prompted(model):
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=3, init="random")
    return model.eval()


def inside(model):
    return model.encoder if model.config.is_encoder_decoder else model.base_model


def classifier(model):
    """Build a classifier around the same layers."""
    config = copy.deepcopy(model.config)
    config._attn_implementation_internal = "sdpa"
    around = AutoModelForSequenceClassification.from_config(config)
    setattr(around, around.base_model_prefix, model.base_model)
    return around.eval()


def same_layers(model):
    """Build another stack of the same layers."""
    other = tiny_model("llama")
    other.model.layers = model.model.layers
    return other


def blended(model, prompts, folder):
    zoo.blend([prompts["default"]] * 2, model=inside(model))


def compared(model, prompts, folder):
    zoo.similarity(prompts["default"], prompts["default"], model=inside(model))


CALLS = {
    "attach": lambda model, prompts, folder: prompted(inside(model)),
    "combine": lambda model, prompts, folder: zoo.combine("prompt_tuning")(inside(model)),
    "bank": lambda model, prompts, folder: zoo.PromptBank(folder / "bank", inside(model)),
    "load": lambda model, prompts, folder: zoo.load(inside(model), folder),
    "blend": blended,
    "similarity": compared,
}


def is_refused_and_nothing_changed(
    model, base, act, message="already has .*, and a module can only hold those of one model"
):
    """Check that `act` is refused, and that a prompted model and its base stay bit for bit the same."""
    expected = logits(model)
    with pytest.raises(zoo.UnsupportedError, match=message):
        act()
    assert torch.equal(logits(model), expected)
    zoo.detach(model)
    assert torch.equal(logits(model), base)


@in_turns(call=CALLS, architecture=ARCHITECTURES)
def test_the_model_inside_a_prompted_one_is_refused(architecture, call, tmp_path):
    model = tiny_model(architecture)
    base = logits(model)
    prompted(model).save_pretrained(tmp_path)
    is_refused_and_nothing_changed(model, base, lambda: CALLS[call](model, model.prompts, tmp_path))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_classifier_around_a_prompted_models_layers_is_refused(architecture):
    model = tiny_model(architecture)
    base = logits(model)
    prompted(model)
    is_refused_and_nothing_changed(model, base, lambda: prompted(classifier(model)))
    prompted(classifier(model))  # the layers are free again


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_around_a_prompted_one_is_refused(architecture):
    model = tiny_model(architecture)
    base = logits(inside(model))
    prompted(inside(model))
    is_refused_and_nothing_changed(inside(model), base, lambda: prompted(model))
    zoo.detach(prompted(model))


def test_a_stack_of_the_same_layers_is_refused():
    model = tiny_model("llama")
    base = logits(model)
    other = same_layers(prompted(model))
    is_refused_and_nothing_changed(model, base, lambda: prompted(other))


def test_models_that_share_their_embedding_table_alone_both_take_prompts():
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    other.model.embed_tokens = model.model.embed_tokens
    expected = logits(prompted(model))
    assert isinstance(prompted(other), PreTrainedModel)
    assert torch.equal(logits(model), expected)


def test_without_looking_first_that_is_red(monkeypatch, tmp_path):
    monkeypatch.setattr(examination, "_check_is_free", lambda model: None)
    monkeypatch.setattr("softprompt_zoo.sites.hooks.BINDING_ATTRIBUTE", "_softprompt_binding")
    model = tiny_model("llama")
    base = logits(model)
    prompted(model)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        is_refused_and_nothing_changed(model, base, lambda: prompted(inside(model)))


def test_the_trial_takes_no_hooks_off(monkeypatch):
    monkeypatch.setattr(examination, "_check_is_free", lambda model: None)
    model = tiny_model("llama")
    base = logits(model)
    prompted(model)
    is_refused_and_nothing_changed(model, base, lambda: prompted(model.model), "already has prompt hooks")
