"""Hooks that break their contract when they run."""

import pytest
from sound_plugins import HIDDEN, TOKENS, Backbone, built, plugin, scaling

import softprompt_zoo as zoo
from softprompt_zoo.discovery import WRAPPER_GROUP
from softprompt_zoo.prompts import make_prompt


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
        ("build_virtual_tokens", returns_nothing, zoo.PluginError, "returned nothing; expected a value, see"),
        ("inject", returns_nothing, zoo.PluginError, "returned nothing; expected a value, see"),
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
