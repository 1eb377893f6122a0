"""The registry: names, failures that stay where they are, and plugins registered by hand."""

import dataclasses
import inspect
import sys
import threading
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import softprompt_zoo as zoo
from softprompt_zoo import discovery
from softprompt_zoo.contract import RESERVED_OPTIONS
from softprompt_zoo.discovery import GROUP, WRAPPER_GROUP, Candidate, normalize
from softprompt_zoo.method import Method
from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.prompts import Prompts, make_prompt
from softprompt_zoo.registry import HOOKS, LoadedMethod, Registry

TOKENS, HIDDEN = 3, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    num_virtual_tokens: int = TOKENS


class Parameters(torch.nn.Module):
    def __init__(self, config, backbone):
        super().__init__()
        self.embeddings = torch.nn.Parameter(torch.ones(config.num_virtual_tokens, backbone.hidden_size))

    def initialize(self, config, backbone):
        pass


@zoo.hookimpl
def build_virtual_tokens(parameters):
    return zoo.InputTokens(parameters.embeddings)


@zoo.hookimpl
def inject(tokens):
    return zoo.Placement(tokens)


@zoo.hookimpl
def merge(parameters):
    return zoo.InputTokens(parameters.embeddings)


def plugin(**changes):
    """A sound method plugin; a change to `None` takes the attribute away."""
    attributes = {"build_virtual_tokens": build_virtual_tokens, "inject": inject, "merge": merge}
    attributes |= {"Config": Config, "Parameters": Parameters, "__doc__": "Sound.\n\nMore.", **changes}
    return types.SimpleNamespace(**{name: value for name, value in attributes.items() if value is not None})


def scaling(factor, **changes):
    @zoo.hookimpl(wrapper=True)
    def build_virtual_tokens():
        tokens = yield
        return zoo.InputTokens(tokens.embeddings * factor)

    return types.SimpleNamespace(build_virtual_tokens=build_virtual_tokens, **changes)


@dataclasses.dataclass
class Backbone:
    """As much of a backbone as making a prompt looks at."""

    hidden_size: int = HIDDEN
    max_positions: int | None = None
    layers: dict = dataclasses.field(default_factory=dict)
    through_cache: bool = False
    input_problem: str | None = None
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))


def built(method, **options):
    """What the method places on a backbone of its own."""
    return make_prompt(method, options, Backbone()).place(Backbone()).tokens.embeddings


class Installed:
    """Stands for what is installed; offers can be added, and are seen like a new package is."""

    def __init__(self):
        self.methods = []
        self.wrappers = []
        self.loads = []

    def offer(self, name, made, *, distribution="strangers", aliases=(), group=GROUP):
        def load():
            self.loads.append(name)
            if isinstance(made, BaseException):
                raise made
            return made

        offers = self.methods if group == GROUP else self.wrappers
        offers.append(Candidate(name, group, distribution, "1.5", load, aliases, f"About {name}."))


@pytest.fixture
def installed(monkeypatch):
    fake = Installed()
    built_in = discovery.find_methods()[: len(BUILTINS)]
    monkeypatch.setattr(discovery, "find_methods", lambda: built_in + fake.methods)
    monkeypatch.setattr(discovery, "find_wrappers", lambda: list(fake.wrappers))
    before = discovery.fingerprint()
    monkeypatch.setattr(discovery, "fingerprint", lambda: (*before, len(fake.methods), len(fake.wrappers)))
    return fake


@pytest.fixture
def registry(installed):
    return Registry()


def check_all_work(registry, *extra):
    """Everything is listed and can be used, and nothing more is listed."""
    assert sorted(registry.candidates()) == sorted([*BUILTINS, *extra])
    for name in [*BUILTINS, *extra]:
        assert registry.lookup(name).name == name
    for name in extra:
        assert built(registry.lookup(name)).shape == (TOKENS, HIDDEN)


def problems(registry, load=True):
    reports = {report.name: report.problem for report in registry.reports(load=load)}
    assert all("\n" not in problem for problem in reports.values() if problem)
    return {name: problem for name, problem in reports.items() if problem}


# Names


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


# Clashes


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


# Broken plugins


@zoo.hookimpl
def asks_for_too_much(tokens, weather):
    return zoo.Placement(tokens)


@zoo.hookimpl
def wrapper_at_heart():
    return (yield)


@zoo.hookimpl(wrapper=True)
def around():
    return (yield)


@zoo.hookimpl(wrapper=True)
def around_nothing(parameters):
    return parameters


class Undecorated(zoo.MethodConfig):
    rank: int = 4


class TakesMore:
    def __init__(self, needed):
        pass

    @zoo.hookimpl
    def inject(self, tokens):
        return zoo.Placement(tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakesName(zoo.MethodConfig):
    name: str = "news"


BROKEN = {
    "import": (ImportError("no module\nnamed 'flash'"), r"ImportError: no module named 'flash'$"),
    "exit": (SystemExit(2), r"SystemExit: 2$"),
    "argument": (
        plugin(inject=asks_for_too_much),
        r"its hook 'inject' asks for 'weather'; it may ask for config, parameters, tokens, backbone$",
    ),
    "misspelt": (
        plugin(injct=inject),
        r"there is no hook 'injct'; did you mean 'inject'\? hooks are build_virtual_tokens, inject, merge, training_l",
    ),
    "missing": (plugin(merge=None), r"it has no hook 'merge'; a method has build_virtual_tokens, inject, merge, each"),
    "unmarked": (plugin(merge=lambda parameters: None), r"it has no hook 'merge'"),
    "own wrapper": (plugin(merge=around), r"it has no hook 'merge'"),
    "no generator": (plugin(merge=around_nothing), r"it has no hook 'merge'"),
    "only wrappers": (scaling(2), r"it has only wrappers; publish it under the entry-point group .*\.wrappers'$"),
    "no config": (plugin(Config=None), r"its Config is None; expected a dataclass that extends softprompt_zoo.Method"),
    "config": (plugin(Config=dict), r"its Config is <class 'dict'>; expected a dataclass"),
    "undecorated": (plugin(Config=Undecorated), r"its Config is <class '.*Undecorated'>; expected a dataclass"),
    "option": (
        plugin(Config=TakesName),
        r"its Config has an option 'name'; 'method', 'model', 'name', 'self' are arguments of the calls that take opti",
    ),
    "parameters": (plugin(Parameters=None), r"it has no Parameters; expected a torch.nn.Module that takes \(config, b"),
    "aliases": (plugin(ALIASES="fast"), r"its ALIASES is 'fast'; expected a tuple of strings$"),
    "peft": (plugin(PEFT_TYPES=(3,)), r"its PEFT_TYPES is \(3,\); expected a tuple of strings$"),
    "examples": (plugin(EXAMPLE_OPTIONS={}), r"its EXAMPLE_OPTIONS are \{\}; expected a tuple of two dictionaries$"),
    "constructor": (TakesMore, r"TypeError: .*needed"),
    "no plugin": (None, r"it has no hook"),
}
BY_HAND = [kind for kind in BROKEN if kind not in ("import", "exit", "only wrappers")]


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


# Hooks that break their contract when they run


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


# By hand


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


def as_class(first):
    """A method written as a class, its hooks static, without `self`, or with it."""
    if first == "static":

        class Written:
            """A class."""

            Config, Parameters, ALIASES = Config, Parameters, ("scribble",)
            build_virtual_tokens = staticmethod(build_virtual_tokens)
            inject = staticmethod(inject)
            merge = staticmethod(merge)

    elif first == "bare":

        class Written:
            Config, Parameters = Config, Parameters

            @zoo.hookimpl
            def build_virtual_tokens(parameters):  # noqa: N805
                return zoo.InputTokens(parameters.embeddings)

            @zoo.hookimpl
            def inject(tokens):  # noqa: N805
                return zoo.Placement(tokens)

            @zoo.hookimpl
            def merge(parameters):  # noqa: N805
                return zoo.InputTokens(parameters.embeddings)

    else:

        class Written:
            Config, Parameters = Config, Parameters

            @zoo.hookimpl
            def build_virtual_tokens(self, parameters):
                return zoo.InputTokens(parameters.embeddings)

            @zoo.hookimpl
            def inject(self, tokens):
                return zoo.Placement(tokens)

            @zoo.hookimpl
            def merge(self, parameters):
                return zoo.InputTokens(parameters.embeddings)

    return Written


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


def test_a_method_in_hand_keeps_working_when_it_is_unregistered(registry):
    registry.register(plugin(), "mixture")
    method = registry.lookup("mixture")
    registry.unregister("mixture")
    assert built(method).shape == (TOKENS, HIDDEN)


# Wrappers


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
        (plugin(), r"it is no wrapper; mark its hooks, all of them, hookimpl\(wrapper=True\)"),
        (types.SimpleNamespace(), "it is no wrapper"),
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


# Threads


def test_threads_share_one_method(installed, registry):
    installed.offer("mixture", plugin())
    barrier = threading.Barrier(8)
    found, errors = [], []

    def work(index):
        try:
            barrier.wait()
            for turn in range(20):
                found.append(registry.lookup("mixture"))
                registry.register(plugin(), f"own{index}x{turn}")
                registry.unregister(f"own{index}x{turn}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len({id(method) for method in found}) == 1
    check_all_work(registry, "mixture")


def test_a_plugin_may_look_methods_up_while_it_is_imported(installed, registry):
    answer = []

    def load():
        thread = threading.Thread(target=lambda: answer.append(registry.lookup("prefix").name))
        thread.start()
        thread.join(30)
        return plugin()

    installed.methods.append(Candidate("curious", GROUP, "strangers", "1.5", load))
    check_all_work(registry, "curious")
    assert answer == ["prefix_tuning"]


# The one instance


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
    assert "softprompt_zoo.registry" in sys.modules
