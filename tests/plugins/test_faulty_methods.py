"""The conformance suite catches methods that break their contract in ways that attaching cannot see."""

import contextlib
import types

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.methods import prompt_tuning
from softprompt_zoo.testing import conformance_suite, tiny_model
from softprompt_zoo.testing.subject import Subject

PARTS = {name: getattr(prompt_tuning, name) for name in ("Config", "Parameters", "build_virtual_tokens")}


def building(make):
    """Return a hook that builds the tokens that `make` computes from config and parameters."""

    @zoo.hookimpl
    def build_virtual_tokens(config, parameters):
        return zoo.InputTokens(make(config, parameters))

    return build_virtual_tokens


def changes_its_config(config, parameters):
    object.__setattr__(config, "init_text", f"{config.init_text}, and so on")
    return parameters.embeddings


def clamps_its_parameters(config, parameters):
    parameters.embeddings.data.clamp_(-0.5, 0.5)
    return parameters.embeddings


def keeps_its_first_tokens(config, parameters):
    if not hasattr(parameters, "kept"):
        parameters.kept = parameters.embeddings.detach().clone()
    return parameters.kept if not parameters.training else parameters.embeddings


class ForgetsItsScale(prompt_tuning.Parameters):
    """Parameters whose scale is not a buffer, and so is not saved."""

    def initialize(self, config, backbone):
        super().initialize(config, backbone)
        self.scale = torch.rand(()) + 1


@zoo.hookimpl
def merges_more(parameters):
    return zoo.InputTokens(1.01 * parameters.embeddings)


@zoo.hookimpl
def does_not_learn(step):
    return step.loss.detach()


FAULTS = {
    "draws at random": (
        {"build_virtual_tokens": building(lambda c, p: p.embeddings + torch.randn_like(p.embeddings))},
        3,
        "row 0",
    ),
    "changes its config": ({"build_virtual_tokens": building(changes_its_config)}, 9, "a hook has changed the config"),
    "clamps": ({"build_virtual_tokens": building(clamps_its_parameters)}, 9, "a hook has changed prompts.default.lea"),
    "keeps tokens": ({"build_virtual_tokens": building(keeps_its_first_tokens)}, 7, "does not require grad"),
    "is not saved": (
        {
            "Parameters": ForgetsItsScale,
            "build_virtual_tokens": building(lambda c, p: getattr(p, "scale", 1) * p.embeddings),
        },
        7,
        "other logits",
    ),
    "merges more": ({"merge": merges_more}, 9, "merged logits"),
    "does not learn": ({"training_loss": does_not_learn}, 1, "does not require grad"),
}
CHECKS = {
    1: "test_promise_01_only_the_prompt_is_trained",
    3: "test_promise_03_rows_do_not_depend_on_padding_or_other_rows",
    7: "test_promise_07_a_loaded_prompt_gives_the_same",
    9: "test_promise_09_merged_equals_trained",
}


@zoo.hookimpl
def refuses():
    raise zoo.UnsupportedError("not here")


def test_the_suite_fails_for_a_method_that_is_refused_on_every_model():
    zoo.register(types.SimpleNamespace(**PARTS | {"build_virtual_tokens": refuses}), "faulty")
    try:
        suite = conformance_suite("faulty", architectures=["gpt2", "bert"])()
        with pytest.raises(pytest.fail.Exception, match="'faulty' is refused on every model: not here"):
            suite.prompted("gpt2")
    finally:
        zoo.unregister("faulty")


def test_the_suite_skips_a_model_that_is_refused_beside_one_that_is_not():
    with pytest.raises(pytest.skip.Exception, match=r"refused: .* causal"):
        conformance_suite("cpt", architectures=["gpt2", "bert"])().prompted("bert")


def draws_in_training(config, parameters):
    return parameters.embeddings + 0.1 * torch.randn_like(parameters.embeddings) * parameters.training


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_stochastic_method_is_compared_from_one_seed(stochastic):
    zoo.register(types.SimpleNamespace(**PARTS | {"build_virtual_tokens": building(draws_in_training)}), "faulty")
    try:
        suite = conformance_suite("faulty", {"init": "random"}, ["llama"], stochastic=stochastic)()
        told = contextlib.nullcontext() if stochastic else pytest.raises(AssertionError, match="loss: differs by")
        with told:
            suite.test_promise_06_checkpointing_changes_memory_only(suite.prompted("llama"), False)
    finally:
        zoo.unregister("faulty")


@pytest.mark.parametrize("fault", FAULTS)
def test_the_suite_catches(fault, tmp_path):
    changes, promise, message = FAULTS[fault]
    zoo.register(types.SimpleNamespace(**{**PARTS, **changes}), "faulty")
    try:
        suite = conformance_suite("faulty", {"init": "random"})()
        subject, base = suite.prompted("llama"), Subject("llama", tiny_model("llama"))
        more = {1: (), 3: (base, "right"), 7: (base, tmp_path), 9: ()}[promise]
        with pytest.raises((AssertionError, RuntimeError), match=message):
            getattr(suite, CHECKS[promise])(subject, *more)
    finally:
        zoo.unregister("faulty")
