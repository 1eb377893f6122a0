"""A method with one hook: the host's defaults place and merge its tokens."""

import pytest
import torch
from sound_plugins import plugin

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXT = torch.arange(3, 9)[None]


@zoo.hookimpl
def twice_while_training(parameters):
    return zoo.InputTokens(parameters.embeddings * (2 if parameters.training else 1))


@zoo.hookimpl
def nothing():
    return None


@zoo.hookimpl(wrapper=True)
def halved():
    tokens = yield
    return zoo.InputTokens(tokens.embeddings / 2)


class Wrapper:
    build_virtual_tokens = merge = staticmethod(halved)


@pytest.fixture
def register():
    registered = []

    def add(name, made):
        zoo.register(made, name)
        registered.append(name)

    yield add
    for name in reversed(registered):
        zoo.unregister(name)


def prompted(name):
    return zoo.get_method(name)(tiny_model("llama"))


def test_merged_tokens_are_those_of_eval_mode(register):
    register("short", plugin(build_virtual_tokens=twice_while_training, inject=None, merge=None))
    model = prompted("short").eval()
    expected = model(input_ids=TEXT).logits
    zoo.merge(model.train())
    assert model.prompts["default"].is_merged
    assert torch.equal(model.eval()(input_ids=TEXT).logits, expected)


def test_wrappers_run_once_around_a_default(register):
    register("short", plugin(inject=None, merge=None))
    register("halving", Wrapper)
    model = prompted("short")
    zoo.merge(model)
    [embeddings] = [parameter for parameter in model.prompts.parameters()]
    assert torch.equal(embeddings, torch.full_like(embeddings, 0.5))


@pytest.mark.parametrize("hook", ["inject", "merge"])
def test_a_hook_that_returns_nothing_is_not_replaced_by_the_default(register, hook):
    register("short", plugin(**{hook: nothing}))
    with pytest.raises(zoo.PluginError, match=rf"hook '{hook}', returned nothing"):
        prompted("short")
