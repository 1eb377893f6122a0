"""Parameters that training would not reach are reported when a prompt is attached."""

import copy
import types
import warnings

import pytest
import torch
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.prompt.reached import unreached
from softprompt_zoo.testing import tiny_model


class TwoParts(nn.Module):
    def __init__(self, config, backbone):
        super().__init__()
        self.words = nn.Parameter(torch.ones(config.num_virtual_tokens, backbone.hidden_size))
        self.offset = nn.Parameter(torch.zeros(backbone.hidden_size))

    def initialize(self, config, backbone):
        pass


class WithAFrozenPart(TwoParts):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.offset.requires_grad_(False)


def attach(make, parameters=TwoParts, **hooks):
    @zoo.hookimpl
    def build_virtual_tokens(parameters):
        return zoo.InputTokens(make(parameters))

    plugin = {"Config": zoo.MethodConfig, "Parameters": parameters, "build_virtual_tokens": build_virtual_tokens}
    zoo.register(types.SimpleNamespace(**plugin, **hooks), "parts")
    try:
        return zoo.get_method("parts")(tiny_model("llama"), num_virtual_tokens=3)
    finally:
        zoo.unregister("parts")


def without_gradients(parameters):
    with torch.no_grad():
        return parameters.words + parameters.offset


DETACHED = {
    "detach": lambda p: (p.words + p.offset).detach(),
    "no_grad": without_gradients,
    "data": lambda p: p.words.data + p.offset.data,
    "constant": lambda p: torch.ones_like(p.words),
}


@pytest.mark.parametrize("make", DETACHED.values(), ids=DETACHED)
def test_tokens_that_no_gradient_goes_through_are_refused(make):
    text = r"^method 'parts' \(zoo.register\), hook 'build_virtual_tokens', returned tokens through which no gradient"
    with pytest.raises(zoo.PluginError, match=text):
        attach(make)


def test_a_parameter_that_no_token_is_made_of_is_named():
    text = r"^method 'parts' \(zoo.register\), Parameters, has 'offset', on which no token depends, so it would nev"
    with pytest.warns(UserWarning, match=text):
        attach(lambda p: p.words)


@zoo.hookimpl
def training_loss(step):
    return step.loss


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda p: p.words, {"parameters": WithAFrozenPart}),
        (lambda p: p.words + p.offset if p.training else p.words, {}),
        (lambda p: p.words, {"training_loss": training_loss}),
        (lambda p: p.words.detach(), {"training_loss": training_loss}),
    ],
    ids=["frozen on purpose", "read in training alone", "read by a loss", "trained by a loss alone"],
)
def test_what_is_meant_so_is_not_told(make, how):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attach(make, **how).prompts.active == ("default",)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context, tensor):
        return 2 * tensor

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


@pytest.mark.parametrize(
    "compute",
    [
        lambda p: p,
        lambda p: p[:1],
        lambda p: p.expand(2, 3, 4),
        lambda p: Doubled.apply(p),
        lambda p: nn.functional.linear(p, torch.ones(2, 4)),
        lambda p: torch.utils.checkpoint.checkpoint(torch.tanh, p, use_reentrant=False),
        lambda p: torch.cat([p.detach(), p]).index_select(0, torch.tensor([4])),
    ],
)
def test_a_parameter_is_reached_where_autograd_gives_it_a_gradient(compute):
    parameters = {"read": nn.Parameter(torch.ones(3, 4)), "unread": nn.Parameter(torch.ones(3, 4))}
    tensor = compute(parameters["read"])
    gradients = torch.autograd.grad(tensor.sum(), [*parameters.values()], allow_unused=True)
    assert unreached([tensor], parameters) == [n for n, g in zip(parameters, gradients, strict=True) if g is None]
    assert unreached([tensor], parameters) == ["unread"]


@pytest.mark.parametrize("trainable", [False, True])
def test_what_a_method_never_trains_stays_so(tmp_path, trainable):
    model = attach(lambda p: p.words + p.offset, WithAFrozenPart)
    prompt = model.prompts["default"]
    assert trained(prompt) == ["words"]
    prompt.requires_grad_(False)
    assert trained(prompt) == []
    prompt.requires_grad_()
    assert trained(prompt) == trained(copy.deepcopy(prompt)) == ["words"]
    model.save_pretrained(tmp_path)
    plugin = {"Config": zoo.MethodConfig, "Parameters": WithAFrozenPart, "build_virtual_tokens": adds_both}
    zoo.register(types.SimpleNamespace(**plugin), "parts")
    try:
        loaded = zoo.load(tiny_model("llama"), tmp_path, trainable=trainable).prompts["default"]
        assert trained(loaded) == ["words"] * trainable
    finally:
        zoo.unregister("parts")


@zoo.hookimpl
def adds_both(parameters):
    return zoo.InputTokens(parameters.words + parameters.offset)


def trained(prompt):
    return [name for name, parameter in prompt.learned.named_parameters() if parameter.requires_grad]
