"""Hooks that break their contract when they run."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from sound_plugins import HIDDEN, TOKENS, Backbone, Config, Parameters, built, plugin, scaling

import softprompt_zoo as zoo
from softprompt_zoo.model.making import make_prompt
from softprompt_zoo.registry.discovery import WRAPPER_GROUP
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.trial.examination import examine


@zoo.hookimpl
def returns_nothing():
    return None


@zoo.hookimpl
def returns_a_string():
    return "here"


@zoo.hookimpl
def returns_too_few(parameters):
    return zoo.InputTokens(parameters.embeddings[1:])


@pytest.mark.parametrize(
    ("hook", "function", "error", "reason"),
    [
        (
            "build_virtual_tokens",
            returns_nothing,
            zoo.PluginError,
            "returned nothing; expected softprompt_zoo.InputTokens o",
        ),
        ("inject", returns_nothing, zoo.PluginError, "returned nothing; expected a softprompt_zoo.Placement, see the"),
        ("build_virtual_tokens", returns_a_string, zoo.ShapeError, "returned str; expected softprompt_zoo.InputTokens"),
        ("inject", returns_a_string, zoo.PluginError, "returned str; expected a softprompt_zoo.Placement"),
        (
            "build_virtual_tokens",
            returns_too_few,
            zoo.ShapeError,
            r"returned embeddings of shape \(2, 8\); expected \(3, 8\)",
        ),
    ],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_hook_that_returns_the_wrong_thing_is_named(installed, registry, hook, function, error, reason, is_wrapped):
    installed.offer("broken", plugin(**{hook: function}))
    installed.offer("mixture", plugin())
    if is_wrapped and function is not returns_a_string:
        installed.offer("twice", scaling(2), group=WRAPPER_GROUP)
    text = rf"^method 'broken' \(strangers 1\.5\), hook '{hook}', {reason}"
    with pytest.raises(error, match=text if function is not returns_a_string else reason):
        make_prompt(registry.lookup("broken"), {}, Backbone())
    assert built(registry.lookup("mixture")).shape == (TOKENS, HIDDEN)


def of_tokens(make):
    """Return a `build_virtual_tokens` that applies `make` to the embeddings."""

    @zoo.hookimpl
    def build_virtual_tokens(parameters):
        return make(parameters.embeddings)

    return build_virtual_tokens


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda e: zoo.InputTokens(e.long()), zoo.ShapeError, "embeddings of dtype torch.int64; expected floating-poi"),
        (lambda e: zoo.InputTokens(e / 0), zoo.PluginError, "infinity or NaN; set the initial value of every par"),
        (
            lambda e: zoo.InputTokens(e * math.nan),
            zoo.PluginError,
            "infinity or NaN; set the initial value of every par",
        ),
        (lambda e: zoo.LayerTokens({}), zoo.ShapeError, r"LayerTokens of \{\}; expected .* backbone has 'decoder'"),
        (lambda e: zoo.LayerTokens(None), zoo.ShapeError, "LayerTokens of None; expected .*SiteTokens by site"),
        (lambda e: zoo.LayerTokens({"decoder": ((e,), (e,))}), zoo.ShapeError, "tuple for the site 'decoder'; expect"),
        (
            lambda e: zoo.LayerTokens({"decoder": zoo.SiteTokens((layer for layer in [e]), (e,))}),
            zoo.ShapeError,
            "generator as keys of 'decoder'; expected a tuple, one for each layer",
        ),
    ],
)
def test_tokens_that_nothing_can_be_done_with_are_refused(installed, registry, make, error, reason):
    installed.offer("broken", plugin(build_virtual_tokens=of_tokens(make)))
    backbone, _ = examine(tiny_model("llama"))
    text = rf"^method 'broken' \(strangers 1\.5\), hook 'build_virtual_tokens', returned {reason}"
    with pytest.raises(error, match=text):
        make_prompt(registry.lookup("broken"), {}, backbone)


def test_a_model_without_weights_has_no_start_values_to_check(installed, registry):
    installed.offer("empty", plugin(build_virtual_tokens=of_tokens(lambda e: zoo.InputTokens(e * math.nan))))
    backbone = Backbone(device=torch.device("meta"))
    assert make_prompt(registry.lookup("empty"), {}, backbone).num_parameters == TOKENS * HIDDEN


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda tokens: zoo.Placement(None), zoo.ShapeError, "returned NoneType; expected softprompt_zoo.InputTokens"),
        (lambda tokens: zoo.Placement(tokens.embeddings), zoo.ShapeError, "returned Parameter; expected softprompt"),
        (
            lambda tokens: zoo.Placement(zoo.InputTokens(tokens.embeddings[1:])),
            zoo.ShapeError,
            r"returned embeddings of shape \(2, 8\); expected \(3, 8\)",
        ),
        (lambda tokens: zoo.Placement(tokens, dropout=1.5), zoo.PluginError, "returned a dropout of 1.5; expected a"),
        (lambda tokens: zoo.Placement(tokens, dropout="x"), zoo.PluginError, "returned a dropout of 'x'; expected a"),
        (lambda tokens: zoo.Placement(tokens, weight=-1), zoo.PluginError, "returned a weight of -1; expected a"),
        (lambda tokens: zoo.Placement(tokens, weight=None), zoo.PluginError, "returned a weight of None; expected a"),
    ],
)
def test_a_placement_that_nothing_can_be_done_with_is_refused(installed, registry, make, error, reason):
    @zoo.hookimpl
    def inject(tokens):
        return make(tokens)

    installed.offer("broken", plugin(inject=inject))
    with pytest.raises(error, match=rf"^method 'broken' \(strangers 1\.5\), hook 'inject', {reason}"):
        make_prompt(registry.lookup("broken"), {}, Backbone())


@zoo.hookimpl
def raises_an_error():
    raise ZeroDivisionError("no tokens")


@zoo.hookimpl
def splits_wrongly(parameters):
    return zoo.LayerTokens({"decoder": zoo.unflatten_layers(parameters.embeddings, [])})


@pytest.mark.parametrize(
    ("function", "error", "reason"),
    [(raises_an_error, ZeroDivisionError, "no tokens"), (splits_wrongly, zoo.ShapeError, r"expected \(tokens, 0\)")],
)
def test_an_error_of_a_hook_has_a_note_that_names_it(installed, registry, function, error, reason):
    installed.offer("broken", plugin(build_virtual_tokens=function))
    installed.offer("twice", scaling(2), group=WRAPPER_GROUP)
    with pytest.raises(error, match=reason) as caught:
        make_prompt(registry.lookup("broken"), {}, Backbone())
    assert caught.value.__notes__ == ["raised by method 'broken' (strangers 1.5), hook 'build_virtual_tokens'"]


# Options and parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holding(Config):
    held: object = None
    unsaved: object = dataclasses.field(default=None, metadata={"saved": False})


@pytest.mark.parametrize(
    "value",
    [torch.ones(2), Path("there"), {1}, torch.float32, (3, torch.ones(2)), math.inf, math.nan, (1, math.nan), {1: 2}],
    ids=str,
)
def test_an_option_that_cannot_be_saved_is_refused_before_it_is_trained(installed, registry, value):
    installed.offer("holding", plugin(Config=Holding))
    with pytest.raises(
        TypeError,
        match=rf"^held is .* \({type(value).__name__}\), which cannot be saved; expected .*option of method 'holding",
    ):
        make_prompt(registry.lookup("holding"), {"held": value}, Backbone())
    assert make_prompt(registry.lookup("holding"), {"unsaved": value}, Backbone()).config.unsaved is value


@pytest.mark.parametrize("value", [1.5, "x", None, True, (1, (2, 3)), {"a": (1, 2)}, ((),)], ids=str)
def test_an_option_that_can_be_saved_is_taken_and_comes_back(installed, registry, value):
    installed.offer("holding", plugin(Config=Holding))
    config = make_prompt(registry.lookup("holding"), {"held": value}, Backbone()).config
    assert config.held == value
    assert Holding.from_options(json.loads(json.dumps(config.to_dict()))).held == value


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgetsTheRest(zoo.MethodConfig):
    scale: float = 1.0

    def __post_init__(self):
        pass


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"num_virtual_tokens": -1}, ValueError, "num_virtual_tokens is -1; expected an integer of at least 1"),
        (
            {"scale": "two"},
            TypeError,
            r"scale is 'two' \(str\); expected a finite number \(an option of method 'forget",
        ),
        ({"scal": 2.0}, TypeError, r"unknown option 'scal' for method 'forgets'; did you mean 'scale'\? expected any"),
    ],
)
def test_options_are_checked_where_a_config_does_not(installed, registry, options, error, reason):
    installed.offer("forgets", plugin(Config=ForgetsTheRest))
    with pytest.raises(error, match=reason):
        make_prompt(registry.lookup("forgets"), options, Backbone())


class TakesTheConfigOnly(Parameters):
    def __init__(self, config):
        super().__init__(config, Backbone())


class InitializesWithTheConfigOnly(Parameters):
    def initialize(self, config):
        pass


class HasNoStart(torch.nn.Module):
    def __init__(self, config, backbone):
        super().__init__()


class IsNoModule:
    def __init__(self, config, backbone):
        self.embeddings = torch.ones(config.num_virtual_tokens, backbone.hidden_size)

    def initialize(self, config, backbone):
        pass


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (IsNoModule, "returned IsNoModule; expected a torch.nn.Module"),
        (lambda config, backbone: None, "returned NoneType; expected a torch.nn.Module"),
        (HasNoStart, r"has no initialize\(config, backbone\), which gives the start values"),
    ],
)
def test_parameters_that_are_no_module_or_have_no_start_are_refused(installed, registry, made, reason):
    installed.offer("broken", plugin(Parameters=made))
    with pytest.raises(zoo.PluginError, match=rf"^method 'broken' \(strangers 1\.5\), Parameters, {reason}"):
        make_prompt(registry.lookup("broken"), {}, Backbone())


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (TakesTheConfigOnly, "Parameters, called with (config, backbone)"),
        (InitializesWithTheConfigOnly, "Parameters.initialize(config, backbone)"),
    ],
)
def test_an_error_of_parameters_has_a_note_that_says_how_they_are_called(installed, registry, made, part):
    installed.offer("broken", plugin(Parameters=made))
    with pytest.raises(TypeError, match="positional argument") as caught:
        make_prompt(registry.lookup("broken"), {}, Backbone())
    assert caught.value.__notes__ == [f"raised by method 'broken' (strangers 1.5), {part}"]
