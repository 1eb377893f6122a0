"""Plugins registered by hand, such as in a notebook, and unregistered."""

import dataclasses
import sys
import types

import pytest
import torch
from broken_plugins import BROKEN
from sound_plugins import HIDDEN, TOKENS, as_class, built, check_all_work, plugin, problems, scaling

import softprompt_zoo as zoo
from softprompt_zoo.registry import discovery
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.plugin_check import HOOKS

BY_HAND = [kind for kind in BROKEN if kind not in ("import", "exit", "only wrappers")]


def test_a_registered_method_works_like_an_installed_one(registry):
    mine = plugin(ALIASES=("my-own",))
    assert registry.register(mine, "mixture") is mine
    assert registry.lookup("MyOwn") is registry.lookup("mixture")
    assert registry.candidates()["mixture"].summary == "Sound."
    assert registry.candidates()["mixture"].aliases == ("my-own",)
    check_all_work(registry, "mixture")
    assert ("mixture", "method", "zoo.register", None) in [
        dataclasses.astuple(report) for report in registry.reports(load=True)
    ]
    registry.unregister("Mixture")
    with pytest.raises(zoo.UnknownMethodError):
        registry.lookup("my-own")
    check_all_work(registry)
    registry.register(plugin(), "mixture")
    check_all_work(registry, "mixture")


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(zoo.InputTokens(torch.zeros(TOKENS, HIDDEN)), "prompt_tuning"), (zoo.LayerTokens({}), "prefix_tuning")],
)
def test_plain_tokens_stay_with_the_package_s_own_methods_whatever_a_stranger_says_it_holds(registry, tokens, name):
    registry.register(plugin(HOLDS_PLAIN=type(tokens)), "a_stranger")  # sorts before the package's own
    registry.register(plugin(PEFT_TYPES=("PROMPT_TUNING", "PREFIX_TUNING")), "an_older_one")
    assert registry.holder_of(tokens).name == name


def test_a_method_holds_only_the_plain_tokens_that_it_says(installed, registry, monkeypatch):
    monkeypatch.setattr(discovery, "find_plugins", lambda: list(installed.methods))
    tokens = zoo.InputTokens(torch.zeros(TOKENS, HIDDEN))
    registry.register(plugin(), "silent")
    registry.register(plugin(HOLDS_PLAIN=zoo.LayerTokens), "prefixes")
    with pytest.raises(zoo.UnsupportedError, match="no loaded method holds plain InputTokens"):
        registry.holder_of(tokens)
    registry.register(plugin(HOLDS_PLAIN=zoo.InputTokens), "words")
    assert registry.holder_of(tokens).name == "words"


@pytest.mark.parametrize("first", ["static", "bare", "self"])
def test_a_class_can_be_decorated(registry, first):
    written = as_class(first)
    assert registry.register(written) is written
    check_all_work(registry, "Written")


@pytest.mark.parametrize("first", ["static", "bare", "self"])
def test_an_entry_point_may_name_a_class_or_an_object(installed, registry, first):
    written = as_class(first)
    installed.offer("a_class", written)
    if first == "self":
        installed.offer("an_object", written())
    check_all_work(registry, *[candidate.name for candidate in installed.methods])


def test_the_name_is_the_argument_or_NAME_or_the_module_s_own(registry):
    module = types.ModuleType("somewhere.mixture")
    vars(module).update(vars(plugin()))
    registry.register(module)
    registry.register(plugin(NAME="named"))
    registry.register(plugin(NAME="named"), "given")
    check_all_work(registry, "mixture", "named", "given")


@pytest.mark.parametrize("name", ["prefix-tuning", "PREFIX", "mixture", "mx", "mine", "my_own", "twice", "both"])
def test_a_taken_name_or_alias_is_refused_and_nothing_changes(installed, registry, name):
    installed.offer("mixture", plugin(), aliases=("mx",))
    installed.offer("both", plugin(), distribution="acme")
    installed.offer("both", plugin(), distribution="other")
    registry.register(plugin(ALIASES=("my-own",)), "mine")
    registry.register(scaling(1), "twice")
    before = registry.reports()
    with pytest.raises(zoo.PluginError, match=rf"the name '{name}' is taken by .*; choose another"):
        registry.register(plugin(), name)
    with pytest.raises(zoo.PluginError, match=rf"the name '{name}' is taken by .*; choose another"):
        registry.register(plugin(ALIASES=(name,)), "fresh")
    with pytest.raises(zoo.PluginError, match=rf"the name '{name}' is taken by .*; choose another"):
        registry.register(scaling(1), name)
    assert registry.reports() == before
    check_all_work(registry, "mixture", "mine")
    registry.register(plugin(), "fresh")
    check_all_work(registry, "mixture", "mine", "fresh")


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_broken_plugin_is_not_registered_and_its_name_stays_free(registry, kind):
    made, reason = BROKEN[kind]
    with pytest.raises(zoo.PluginError, match="^method 'mixture' failed to load from zoo.register: .*" + reason):
        registry.register(made, "mixture")
    assert problems(registry) == {}
    check_all_work(registry)
    registry.register(plugin(), "mixture")
    check_all_work(registry, "mixture")


@pytest.mark.parametrize("name", ["", "-", "a b", "a.b", "a/b", "a\nb"])
def test_a_name_with_other_characters_is_refused(registry, name):
    with pytest.raises(ValueError, match=r"plugin name is '.*'; expected letters, digits, '_' and '-'"):
        registry.register(plugin(), name)
    check_all_work(registry)


def test_a_plugin_name_that_is_no_string_is_refused(registry):
    with pytest.raises(TypeError, match=r"plugin name is 3 \(int\); expected a string"):
        registry.register(plugin(), 3)
    with pytest.raises(TypeError, match=r"plugin name is \('a',\) \(tuple\); expected a string"):
        registry.register(plugin(NAME=("a",)))
    check_all_work(registry)


@pytest.mark.parametrize("name", ["prefix_tuning", "mixture", "nobody", 3])
def test_only_what_was_registered_by_hand_is_unregistered(installed, registry, name):
    installed.offer("mixture", plugin())
    registry.register(plugin(), "mine")
    with pytest.raises(zoo.UnknownMethodError, match=r"nothing was registered by hand under .*; registered: 'mine'$"):
        registry.unregister(name)
    check_all_work(registry, "mixture", "mine")
    registry.unregister("mine")
    with pytest.raises(
        zoo.UnknownMethodError, match=r"nothing was registered by hand under 'mine'; registered: nothing$"
    ):
        registry.unregister("mine")


def test_registering_a_cell_of_a_notebook_again_says_how(installed, registry):
    installed.offer("mixture", plugin())
    registry.register(plugin(ALIASES=("own",)), "mine")
    for name, again in [("Mine", True), ("OWN", True), ("mixture", False), ("prefix", False)]:
        with pytest.raises(zoo.PluginError, match=f"the name '{name}' is taken by .*; choose another") as caught:
            registry.register(plugin(), name)
        assert str(caught.value).endswith(", or zoo.unregister('mine') first") == again
    registry.unregister("mine")
    registry.register(plugin(), "Mine")


def test_a_method_in_hand_keeps_working_when_it_is_unregistered(registry):
    registry.register(plugin(), "mixture")
    method = registry.lookup("mixture")
    registry.unregister("mixture")
    assert built(method).shape == (TOKENS, HIDDEN)


def test_the_public_functions_use_the_one_registry():
    @zoo.register
    class Scribbled(as_class("static")):
        NAME = "scribbled"

    try:
        assert "scribbled" in zoo.list_methods()
        assert zoo.get_method("scribble").name == "scribbled"
        assert isinstance(zoo.get_method("scribbled")._loaded, LoadedMethod)
    finally:
        zoo.unregister("scribbled")
    assert "scribbled" not in zoo.list_methods()
    assert set(HOOKS) == {"build_virtual_tokens", "inject", "merge"}
    assert "softprompt_zoo.registry.registry" in sys.modules
