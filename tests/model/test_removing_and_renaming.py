"""Removing the active prompt activates another and says so; renaming changes a name and nothing else."""

import warnings

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.testing import tiny_model

IDS = torch.arange(4, 10).repeat(2, 1)
METHODS = ["prompt_tuning", "prefix_tuning", "p_tuning"]


@pytest.fixture(params=["llama", "bert"])
def model(request):
    model = zoo.get_method(METHODS[0])(tiny_model(request.param), num_virtual_tokens=3)
    for method in METHODS[1:]:
        model.prompts.add(method, method, num_virtual_tokens=3)
    return model.eval()


def logits(model, **arguments):
    with torch.no_grad():
        return model(IDS, **arguments).logits


def another_is_active(model):
    """Check that the first remaining prompt acts when the active one is removed."""
    expected = logits(model, prompts="prefix_tuning")
    with pytest.warns(UserWarning, match="prompt 'default' was active and is removed; 'prefix_tuning' is active now"):
        model.prompts.remove("default")
    assert model.prompts.active == ("prefix_tuning",)
    assert torch.equal(logits(model), expected)


def test_removing_the_active_prompt_activates_the_first_that_is_left(model):
    another_is_active(model)


def test_others_are_removed_without_a_word(model):
    model.prompts.activate("default", "p_tuning")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.prompts.remove("prefix_tuning")
        model.prompts.remove("p_tuning")
        assert model.prompts.active == ("default",)
        model.prompts.remove("default")
    assert model.prompts.active == ()


def test_without_that_it_is_red(model, monkeypatch):
    def remove(self, name):
        del self._modules[name]
        self.choose(())

    monkeypatch.setattr(Prompts, "remove", remove)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        another_is_active(model)


def test_a_renamed_prompt_is_the_same(model, tmp_path):
    expected, prompt = logits(model), model.prompts["default"]
    model.prompts.rename("default", "first")
    assert list(model.prompts) == ["first", "prefix_tuning", "p_tuning"]
    assert model.prompts.active == ("first",)
    assert model.prompts["first"] is prompt
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path, names="first")
    assert any(key.startswith("prompts.first.") for key in model.state_dict())
    assert torch.equal(logits(model, prompts=["first"] * 2), expected)
    with pytest.raises(zoo.UnknownPromptError):
        model.prompts.rename("default", "second")
    for taken, error in (("p_tuning", zoo.PromptExistsError), ("a/b", ValueError)):
        with pytest.raises(error):
            model.prompts.rename("first", taken)
    assert list(model.prompts) == ["first", "prefix_tuning", "p_tuning"]
