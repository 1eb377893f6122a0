"""Names and aliases: any spelling finds a method, and listing loads none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sound_plugins import Config, Parameters, check_all_work, plugin, problems

import softprompt_zoo as zoo
from softprompt_zoo.registry import discovery
from softprompt_zoo.registry.discovery import normalize


@given(st.text())
def test_normalizing_twice_is_normalizing_once(name):
    assert normalize(normalize(name)) == normalize(name)


@given(st.text("abcXYZ019-_", min_size=1), st.randoms(use_true_random=False))
def test_case_hyphens_and_underscores_do_not_matter(name, random):
    spelled = "".join(
        random.choice(["", "-", "_"]) + random.choice([letter.lower(), letter.upper()]) for letter in name
    )
    assert normalize(spelled) == normalize(name)


@given(st.text("abcxyz019", min_size=1), st.text("abcxyz019", min_size=1))
def test_different_letters_stay_different(one, other):
    assert (normalize(one) == normalize(other)) == (one == other)


@pytest.mark.parametrize("name", ["prefix_tuning", "Prefix-Tuning", "PREFIXTUNING", "prefix", "_PREFIX-"])
def test_a_method_is_found_by_any_spelling_and_alias(registry, name):
    assert registry.lookup(name) is registry.lookup("prefix_tuning")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "prefix_tunning",
            r"no soft-prompt method 'prefix_tunning'; did you mean 'prefix_tuning'\? installed: .*prompt_",
        ),
        ("Promt-Tuning", r"no soft-prompt method 'Promt-Tuning'; did you mean 'prompt_tuning'\?"),
        ("zzzzzz", r"no soft-prompt method 'zzzzzz'; installed: "),
        ("", r"no soft-prompt method ''; installed: "),
        ("-_", r"no soft-prompt method '-_'; installed: "),
    ],
)
def test_an_unknown_name_suggests_the_nearest_and_lists_the_installed(registry, name, message):
    with pytest.raises(zoo.UnknownMethodError, match=message):
        registry.lookup(name)


def test_an_unknown_name_tells_that_the_environment_variable_limits_what_loads(registry, monkeypatch):
    monkeypatch.setenv(discovery.ENVIRONMENT_VARIABLE, "other")
    with pytest.raises(zoo.UnknownMethodError, match=r"installed: .* \(SOFTPROMPT_ZOO_PLUGINS is 'other'\)$"):
        registry.lookup("mixture")


@pytest.mark.parametrize("name", [None, 3, b"prefix", ["prefix"]])
def test_a_name_that_is_no_string_is_refused(registry, name):
    with pytest.raises(TypeError, match=r"method name is .*; expected a string"):
        registry.lookup(name)


def test_names_aliases_and_summaries_are_known_without_loading_a_plugin(installed, registry):
    installed.offer("mixture", plugin(), aliases=("mixed",))
    candidate = registry.candidates()["mixture"]
    assert (candidate.aliases, candidate.summary) == (("mixed",), "About mixture.")
    assert problems(registry, load=False) == {}
    assert installed.loads == []
    method = registry.lookup("Mixed")
    assert (method.name, method.aliases, method.summary) == ("mixture", ("mixed",), "About mixture.")
    assert (method.distribution, method.version) == ("strangers", "1.5")
    assert method.recipe is None
    assert method.peft_types == ()
    assert method.config_class is Config
    assert method.parameters_class is Parameters
    assert registry.lookup("mixture") is method
    assert installed.loads == ["mixture"]


def test_what_is_installed_later_is_found(installed, registry):
    assert "mixture" not in registry.candidates()
    installed.offer("mixture", plugin())
    check_all_work(registry, "mixture")
