"""How the way to reach a stack is chosen: which runs there are, and what is said if none of them finds one."""

import warnings

import pytest

import softprompt_zoo as zoo
from softprompt_zoo.sites.reach.real_positions import RealPositions
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.trial import choice_of_reach
from softprompt_zoo.trial.stacks import find_stacks

TEXTLESS = [AssertionError(), NotImplementedError(), KeyError(), ValueError(""), ValueError("\n \n")]


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    """Forget what other tests have found, and return for each run whether it is without weights."""
    made = []
    run = choice_of_reach._run

    def noted(stack, is_idle):
        made.append(is_idle)
        return run(stack, is_idle)

    monkeypatch.setattr(choice_of_reach, "_FOUND", {})
    monkeypatch.setattr(choice_of_reach, "_run", noted)
    return made


def raising(model, error, without_weights_only=False):
    """Make the first layer's forward fail, always or if a linear layer returns zeros."""
    projection = model.model.layers[0].self_attn.k_proj

    def fail(module, args, output):
        if not without_weights_only or not output.any():
            raise error

    projection.register_forward_hook(fail)
    return model


@pytest.mark.parametrize("error", TEXTLESS, ids=repr)
def test_a_failure_without_text_is_told_by_its_class(error):
    model = raising(tiny_model("llama"), error)
    with pytest.raises(zoo.UnsupportedError, match=rf"a trial run of its decoder failed: {type(error).__name__};"):
        zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)


def test_of_a_failure_with_text_the_first_line_is_told():
    model = raising(tiny_model("llama"), ValueError("\nno such text\nat all"))
    with pytest.raises(zoo.UnsupportedError, match="failed: ValueError: no such text; choose a model"):
        zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)


@pytest.mark.parametrize("error", [*TEXTLESS, ValueError("all zeros")], ids=repr)
def test_a_failure_without_weights_only_does_not_matter(error, runs):
    zoo.get_method("prefix_tuning")(raising(tiny_model("llama"), error, without_weights_only=True))
    assert runs == [True, False]


def test_a_failure_in_front_of_a_module_warns_of_nothing():
    model = tiny_model("llama")

    def fail(module, args):
        raise AssertionError

    model.model.layers[0].register_forward_pre_hook(fail)
    with warnings.catch_warnings(record=True, action="always") as caught, pytest.raises(zoo.UnsupportedError):
        zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)
    assert not caught


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (1, r"its attention is called 2 times, but a prompt can only enter once per layer \(layers: 1\)"),
        (4, "only 2 of its 4 layers are attention that a prompt can enter"),
    ],
)
def test_calls_of_attention_that_are_not_one_per_layer_are_told(layers, problem):
    model = tiny_model("bert")
    model.config.num_hidden_layers = layers
    _, stacks = find_stacks(model)
    with pytest.raises(zoo.UnsupportedError, match=rf"^nothing can be added .* attention: {problem}; choose a method"):
        stacks["encoder"].reach.refuse_branches()


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_where_no_way_is_to_be_tried_a_stack_is_run_with_its_weights_only(architecture, runs):
    _, stacks = find_stacks(tiny_model(architecture), (), "known before")
    assert runs == [False] * len(stacks)
    assert all(isinstance(stack.reach, RealPositions) for stack in stacks.values())
    assert {stack.reach.problem for stack in stacks.values()} == {"known before"}
