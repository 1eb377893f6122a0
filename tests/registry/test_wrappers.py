"""Wrappers: plugins around every method's hooks."""

import dataclasses
import types

import pytest
import torch
from broken_plugins import around, around_nothing
from sound_plugins import Backbone, Config, Parameters, built, check_all_work, plugin, problems, scaling

import softprompt_zoo as zoo
from softprompt_zoo.registry.discovery import WRAPPER_GROUP
from softprompt_zoo.testing import tiny_model


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
        (plugin(), r"it is not a wrapper; mark all of its hooks hookimpl\(wrapper=True\)"),
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
    text = r"^wrapper 'hole' \(strangers 1\.5\), hook 'build_virtual_tokens', returned nothing; expected the result of"
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


# Wrappers that fail when called: only they are named, and they are not blamed for errors inside of them


@zoo.hookimpl(wrapper=True)
def fails_before():
    raise ZeroDivisionError("before")
    yield


@zoo.hookimpl(wrapper=True)
def fails_behind():
    yield
    raise ZeroDivisionError("behind")


@zoo.hookimpl(wrapper=True)
def never_yields():
    return 3
    yield


@zoo.hookimpl(wrapper=True)
def yields_twice():
    yield
    yield


@zoo.hookimpl(wrapper=True)
def replaces_the_error():
    try:
        return (yield)
    except OSError:
        raise ZeroDivisionError("instead") from None


@zoo.hookimpl
def raises_an_error():
    raise OSError("of the method")


NAMED = "wrapper 'bad' (strangers 1.5), hook 'build_virtual_tokens',"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (fails_before, "before"),
        (fails_behind, "behind"),
        (never_yields, "did not yield; expected one yield"),
        (yields_twice, "yielded twice; expected one yield"),
        (replaces_the_error, "instead"),
    ],
)
def test_a_wrapper_that_fails_is_named_alone(installed, registry, function, reason):
    installed.offer("around", types.SimpleNamespace(build_virtual_tokens=around), group=WRAPPER_GROUP)
    installed.offer("bad", types.SimpleNamespace(build_virtual_tokens=function), group=WRAPPER_GROUP)
    installed.offer(
        "mixture", plugin(build_virtual_tokens=raises_an_error) if function is replaces_the_error else plugin()
    )
    with pytest.raises((zoo.PluginError, ZeroDivisionError), match=reason) as caught:
        built(registry.lookup("mixture"))
    told = [str(caught.value), *getattr(caught.value, "__notes__", ())]
    assert [line for line in told if "wrapper '" in line] in ([f"raised by {NAMED[:-1]}"], [told[0]])
    assert NAMED[:-1] in " ".join(told)
    assert "around" not in " ".join(told)


@pytest.mark.parametrize("error", [OSError, None])
def test_a_wrapper_may_turn_an_error_into_a_value(installed, registry, error):
    @zoo.hookimpl(wrapper=True)
    def build_virtual_tokens(parameters):
        try:
            return (yield)
        except OSError:
            return zoo.InputTokens(parameters.embeddings)

    made = {} if error is None else {"build_virtual_tokens": raises_an_error}
    installed.offer("kind", types.SimpleNamespace(build_virtual_tokens=build_virtual_tokens), group=WRAPPER_GROUP)
    installed.offer("mixture", plugin(**made))
    assert built(registry.lookup("mixture")).unique().tolist() == [1]


@zoo.hookimpl(hookwrapper=True)
def triples_as_before():
    outcome = yield
    outcome.force_result(zoo.InputTokens(3 * outcome.get_result().embeddings))


def test_a_wrapper_of_the_older_kind_still_works(installed, registry):
    installed.offer("old", types.SimpleNamespace(build_virtual_tokens=triples_as_before), group=WRAPPER_GROUP)
    installed.offer("twice", scaling(2), group=WRAPPER_GROUP)
    installed.offer("mixture", plugin())
    assert built(registry.lookup("mixture")).unique().tolist() == [6]


@zoo.hookimpl(wrapper=True, tryfirst=True)
def adds_outside():
    return zoo.InputTokens((yield).embeddings + 1)


def test_order_marks_say_which_wrapper_is_outside(installed, registry):
    installed.offer("outside", types.SimpleNamespace(build_virtual_tokens=adds_outside), group=WRAPPER_GROUP)
    installed.offer("twice", scaling(2), group=WRAPPER_GROUP)
    installed.offer("mixture", plugin())
    assert built(registry.lookup("mixture")).unique().tolist() == [3]


@pytest.mark.parametrize("method", ["prompt_tuning", pytest.param("prefix_tuning", marks=pytest.mark.slow)])
def test_an_idle_wrapper_leaves_forwards_whole_for_torch_compile(method):
    zoo.register(types.SimpleNamespace(build_virtual_tokens=around, inject=around), "idle")
    try:
        model = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=3)
        text = torch.arange(3, 9)[None]
        compiled = torch.compile(model, backend="eager", fullgraph=True)(input_ids=text).logits
        assert torch.equal(compiled, model(input_ids=text).logits)
    finally:
        zoo.unregister("idle")
        torch.compiler.reset()
