"""Names and aliases that several plugins offer."""

import pytest
from sound_plugins import check_all_work, plugin, problems

import softprompt_zoo as zoo
from softprompt_zoo.registry import discovery


def test_two_strangers_with_one_name_are_both_named_and_neither_gets_it(installed, registry):
    installed.offer("mixture", plugin(), distribution="acme")
    installed.offer("Mix-Ture", plugin(), distribution="softprompt-zoo-mixture", aliases=("mx",))
    text = (
        r"2 plugins offer the name '.*': method 'mixture' of acme 1\.5 and "
        r"method 'Mix-Ture' of softprompt-zoo-mixture 1\.5; uninstall one"
    )
    with pytest.raises(zoo.PluginError, match=text):
        registry.lookup("mixture")
    with pytest.raises(zoo.UnknownMethodError):
        registry.lookup("mx")
    found = problems(registry)
    assert set(found) == {"mixture", "Mix-Ture"}
    assert found["mixture"] == found["Mix-Ture"]
    assert installed.loads == []
    check_all_work(registry)


@pytest.mark.parametrize("name", ["prefix_tuning", "PrefixTuning", "prefix", "soft-prompt"])
def test_a_stranger_cannot_take_a_built_in_name_or_alias(installed, registry, name):
    installed.offer(name, plugin(), aliases=("thief",))
    installed.offer("mixture", plugin())
    assert registry.lookup(name).distribution == "softprompt-zoo"
    with pytest.raises(zoo.UnknownMethodError):
        registry.lookup("thief")
    found = [report for report in registry.reports(load=True) if report.problem]
    assert [report.origin for report in found] == ["strangers 1.5"]
    assert f"of softprompt-zoo {discovery.own_version()} and method {name!r} of strangers 1.5" in found[0].problem
    assert found[0].problem.endswith("the first keeps it; rename the other")
    check_all_work(registry, "mixture")


def test_a_clash_of_aliases_costs_the_alias_only(installed, registry):
    installed.offer("one", plugin(), aliases=("fast", "uno"), distribution="acme")
    installed.offer("two", plugin(), aliases=("FAST", "prefix", "one"))
    text = r"2 plugins offer the name 'FAST|fast': method 'one' of acme 1\.5 and method 'two' of strangers 1\.5"
    with pytest.raises(zoo.PluginError, match=text):
        registry.lookup("fast")
    assert registry.lookup("uno").aliases == ("uno",)
    assert registry.lookup("two").aliases == ()
    assert registry.lookup("prefix").name == "prefix_tuning"
    assert set(problems(registry)) == {"one", "two"}
    check_all_work(registry, "one", "two")


def test_one_entry_point_listed_twice_is_one_method(installed, registry):
    installed.offer("mixture", plugin())
    installed.offer("mixture", plugin())
    check_all_work(registry, "mixture")
    assert problems(registry) == {}
