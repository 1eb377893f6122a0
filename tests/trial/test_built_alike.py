"""Stacks that are built alike are examined once; whatever could make one differ from the first is noticed."""

import pytest
import torch

from softprompt_zoo.testing import tiny_model
from softprompt_zoo.trial import choice_of_reach
from softprompt_zoo.trial.built_alike import built
from softprompt_zoo.trial.examination import examine


@pytest.fixture
def looks(monkeypatch):
    """Return the names of the stacks that are run to find how prompts can reach them."""
    names = []
    run = choice_of_reach._run

    def noted(stack, is_idle):
        names.append(stack.name)
        return run(stack, is_idle)

    monkeypatch.setattr(choice_of_reach, "_FOUND", {})
    monkeypatch.setattr(choice_of_reach, "_run", noted)
    return names


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "bert", "t5"])
def test_a_model_that_is_built_alike_is_the_same_without_a_look(architecture, looks, monkeypatch):
    examine(tiny_model(architecture))
    once = list(looks)
    model = tiny_model(architecture)
    backbone, there = examine(model)
    assert looks == once
    monkeypatch.setattr(choice_of_reach, "_FOUND", {})
    fresh, anew = examine(model)
    assert looks == once + once
    assert (fresh.sizes(), anew) == (backbone.sizes(), there)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.model.layers[1].self_attn, "sliding_window", 2),
        lambda model: model.model.layers[1].self_attn.register_forward_hook(lambda *_: None),
        lambda model: setattr(model.config, "rope_parameters", {**model.config.rope_parameters, "rope_theta": 7.0}),
        lambda model: setattr(model.model.layers[1].self_attn, "forward", model.model.layers[1].self_attn.forward),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.resize_token_embeddings(model.config.vocab_size + 1),
    ],
)
def test_a_model_that_somebody_changed_is_looked_at(change, looks):
    examine(tiny_model("mistral"))
    model = tiny_model("mistral")
    change(model)
    examine(model)
    assert len(looks) > 1


def test_training_and_weights_are_no_difference():
    model, other = tiny_model("llama").train(), tiny_model("llama").eval()
    torch.nn.init.ones_(other.lm_head.weight)
    assert built(model.model) == built(other.model)
