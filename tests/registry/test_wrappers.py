"""Wrappers: plugins around every method's hooks."""

import dataclasses
import types

import pytest
from broken_plugins import around, around_nothing
from sound_plugins import Backbone, Config, Parameters, built, check_all_work, plugin, problems, scaling

import softprompt_zoo as zoo
from softprompt_zoo.registry.discovery import WRAPPER_GROUP


def test_wrappers_act_on_every_method_and_can_be_taken_back(installed, registry):
    installed.offer("one", plugin())
    installed.offer("two", plugin())
    loaded = registry.lookup("one")
    assert built(loaded).unique().tolist() == [1]
    registry.register(scaling(3, NAME="thrice"))
    registry.register(scaling(2), "twice")
    assert built(loaded).unique().tolist() == [6]
    assert built(registry.lookup("two")).unique().tolist() == [6]
    assert "thrice" not in registry.candidates()
    registry.unregister("thrice")
    assert built(loaded).unique().tolist() == [2]
    registry.unregister("twice")
    assert built(loaded).unique().tolist() == [1]
    check_all_work(registry, "one", "two")


def test_installed_wrappers_act_on_what_is_registered_by_hand(installed, registry):
    installed.offer("twice", scaling(2), group=WRAPPER_GROUP)
    registry.register(plugin(), "mixture")
    assert built(registry.lookup("mixture")).unique().tolist() == [2]
    assert ("twice", "wrapper", "strangers 1.5", None) in [
        dataclasses.astuple(report) for report in registry.reports(load=True)
    ]


@zoo.hookimpl(wrapper=True)
def asks_the_weather(weather):
    return (yield)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (ImportError("gone"), "ImportError: gone"),
        (types.SimpleNamespace(inject=asks_the_weather), "its hook 'inject' asks for 'weather'; it may ask for"),
        (types.SimpleNamespace(injct=around), "there is no hook 'injct'; did you mean 'inject'"),
        (plugin(), r"it is not a wrapper; mark its hooks, all of them, hookimpl\(wrapper=True\)"),
        (types.SimpleNamespace(), "it is not a wrapper"),
        (types.SimpleNamespace(merge=around_nothing), "not a generator function"),
    ],
)
def test_a_broken_wrapper_is_warned_about_once_and_left_out(installed, registry, recwarn, made, reason):
    installed.offer("broken", made, group=WRAPPER_GROUP)
    installed.offer("twice", scaling(2), group=WRAPPER_GROUP)
    installed.offer("mixture", plugin())
    text = rf"^wrapper 'broken' failed to load from strangers 1\.5: .*{reason}"
    with pytest.warns(UserWarning, match=text):
        method = registry.lookup("mixture")
    registry.lookup("prefix")
    assert not recwarn.list
    assert built(method).unique().tolist() == [2]
    assert set(problems(registry, load=False)) == set(problems(registry)) == {"broken"}


def test_a_wrapper_that_returns_nothing_is_named(installed, registry):
    @zoo.hookimpl(wrapper=True)
    def build_virtual_tokens():
        yield

    installed.offer("hole", types.SimpleNamespace(build_virtual_tokens=build_virtual_tokens), group=WRAPPER_GROUP)
    installed.offer("mixture", plugin())
    text = r"^wrapper 'hole' of strangers 1\.5, around method 'mixture' .*'build_virtual_tokens', returned nothing"
    with pytest.raises(zoo.PluginError, match=text):
        built(registry.lookup("mixture"))


def test_a_hook_may_carry_another_name_and_order_marks(installed, registry):
    @zoo.hookimpl(specname="merge", trylast=True)
    def fold(parameters):
        return zoo.InputTokens(parameters.embeddings)

    installed.offer("mixture", plugin(merge=None, fold=fold))
    check_all_work(registry, "mixture")
    parameters = Parameters(Config(), Backbone())
    merged = registry.lookup("mixture").call("merge", config=None, parameters=parameters, backbone=None)
    assert merged.embeddings is parameters.embeddings
