"""Plugins that cannot be loaded: each is reported in one line, and the others work."""

import inspect

import pytest
from broken_plugins import BROKEN
from sound_plugins import HIDDEN, TOKENS, built, check_all_work, plugin, problems

import softprompt_zoo as zoo
from softprompt_zoo.method import Method
from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.registry.attribute_check import RESERVED_OPTIONS
from softprompt_zoo.registry.discovery import GROUP, Candidate


def test_reserved_options_are_the_arguments_of_the_calls_that_take_options():
    calls = (Method.__call__, Method.configure, Prompts.add)
    named = {p.name for c in calls for p in inspect.signature(c).parameters.values() if p.kind != p.VAR_KEYWORD}
    assert named == set(RESERVED_OPTIONS)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_told_in_one_line_and_the_others_work(installed, registry, kind):
    made, reason = BROKEN[kind]
    installed.offer("broken", made)
    installed.offer("mixture", plugin())
    text = r"^method 'broken' failed to load from strangers 1\.5: .*" + reason
    for _ in range(2):
        with pytest.raises(zoo.PluginError, match=text) as caught:
            registry.lookup("broken")
        assert "\n" not in str(caught.value)
    assert installed.loads.count("broken") == 1
    assert problems(registry, load=False) == {"broken": str(caught.value)}
    assert problems(registry) == {"broken": str(caught.value)}
    assert built(registry.lookup("mixture")).shape == (TOKENS, HIDDEN)
    for name in BUILTINS:
        assert registry.lookup(name).name == name


def test_reports_find_what_nobody_has_looked_up(installed, registry):
    installed.offer("broken", ImportError("gone"))
    assert problems(registry, load=False) == {}
    assert problems(registry) == {"broken": "method 'broken' failed to load from strangers 1.5: ImportError: gone"}


def test_a_failed_plugin_is_tried_again_when_something_was_installed(installed, registry):
    outcomes = [ImportError("gone"), plugin()]

    def load():
        outcome = outcomes.pop(0)
        if isinstance(outcome, ImportError):
            raise outcome
        return outcome

    installed.methods.append(Candidate("mended", GROUP, "strangers", "1.5", load))
    for _ in range(2):
        with pytest.raises(zoo.PluginError, match="ImportError: gone"):
            registry.lookup("mended")
    installed.offer("what_it_lacked", plugin())
    check_all_work(registry, "mended", "what_it_lacked")
    assert problems(registry) == {}


def test_the_cause_of_a_failure_is_kept(installed, registry):
    installed.offer("broken", ImportError("gone"))
    for _ in range(2):
        with pytest.raises(zoo.PluginError) as caught:
            registry.lookup("broken")
        assert isinstance(caught.value.__cause__, ImportError)


def test_a_failing_stranger_with_a_taken_name_does_not_poison_the_winner(installed, registry):
    installed.offer("prefix_tuning", ImportError("gone"))
    with pytest.raises(zoo.PluginError, match="is taken by method 'prefix_tuning' of softprompt-zoo"):
        registry.register(plugin(), "prefix_tuning")
    registry.reports(load=True)
    check_all_work(registry)


def test_keyboard_interrupts_pass(installed, registry):
    installed.offer("broken", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        registry.lookup("broken")


def test_a_config_without_options_of_its_own_need_not_be_decorated(registry):
    registry.register(plugin(Config=type("Plain", (zoo.MethodConfig,), {})), "mixture")
    assert built(registry.lookup("mixture"), num_virtual_tokens=TOKENS).shape == (TOKENS, HIDDEN)
