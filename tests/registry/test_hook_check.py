"""`plugins --check` reports what attaching cannot see, and blames only the plugin at fault."""

import dataclasses
import types

import pytest
import torch
from broken_plugins import around

import softprompt_zoo as zoo
from softprompt_zoo.cli.hook_check import check_hooks
from softprompt_zoo.methods import BUILTINS, prompt_tuning
from softprompt_zoo.registry.discovery import WRAPPER_GROUP
from softprompt_zoo.registry.registry import registry as installed_methods


def method(**changes):
    names = ("Config", "Parameters", "build_virtual_tokens")
    return types.SimpleNamespace(**{name: getattr(prompt_tuning, name) for name in names} | changes)


class WithOffset(prompt_tuning.Parameters):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.offset = torch.nn.Parameter(torch.zeros(1))


@zoo.hookimpl
def training_loss(step):
    return step.loss


@zoo.hookimpl
def merges_more(parameters):
    return zoo.InputTokens(1.01 * parameters.embeddings)


@zoo.hookimpl
def has_no_merged_form():
    raise zoo.UnsupportedError("no merged form")


@zoo.hookimpl
def builds_detached(parameters):
    return zoo.InputTokens(parameters.embeddings.detach())


@zoo.hookimpl(wrapper=True)
def returns_nothing():
    yield


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedsAScale(zoo.Options):
    scale: float


FAULTS = {
    "detached": (method(build_virtual_tokens=builds_detached), "returned tokens through which no gradient flows"),
    "unread": (method(Parameters=WithOffset, training_loss=training_loss), "gives its Parameters 'offset' no gradient"),
    "more": (
        method(merge=merges_more),
        "its hook 'merge' returns different tokens from 'build_virtual_tokens' in eval",
    ),
    "alias": (method(ALIASES=("other",)), "its alias 'other' finds nothing: ALIASES is read from the source text"),
}


def check(registry=installed_methods):
    reports, notes = check_hooks(registry.reports(load=True))
    return {report.name: report.problem for report in reports}, notes


@pytest.fixture
def global_registry(installed):
    """Yield the installed plugins as the commands see them."""
    yield installed
    installed.methods.clear()
    installed.wrappers.clear()


def test_faults_of_methods_are_found(global_registry):
    for name, (made, _) in FAULTS.items():
        global_registry.offer(name, made)
    global_registry.offer("sound", method())
    global_registry.offer("unmergeable", method(merge=has_no_merged_form))
    problems, _ = check()
    for name, (_, reason) in FAULTS.items():
        assert reason in problems.pop(name)
    assert not any(problems.values())


def test_an_optional_hook_without_its_mark_is_warned_of_and_a_problem(global_registry):
    global_registry.offer("unmarked", method(after_step=lambda parameters: None))
    text = r"method 'unmarked' \(strangers 1.5\): its 'after_step' is not marked softprompt_zoo.hookimpl, so it is nev"
    with pytest.warns(UserWarning, match=text):
        installed_methods.lookup("unmarked")
    assert check()[0]["unmarked"].startswith("its 'after_step' is not marked")


def test_a_wrapper_that_fails_when_it_is_called_is_blamed_alone(global_registry):
    made = {
        "hole": types.SimpleNamespace(inject=returns_nothing),
        "idle": types.SimpleNamespace(inject=around),
        "half": types.SimpleNamespace(inject=around, merge=lambda: None),
        "choosy": types.SimpleNamespace(inject=around, Config=NeedsAScale),
    }
    for name, wrapper in made.items():
        global_registry.offer(name, wrapper, group=WRAPPER_GROUP)
    with pytest.warns(UserWarning, match="'merge' is not marked"):
        problems, notes = check()
    assert "wrapper 'hole' (strangers 1.5), hook 'inject', returned nothing" in problems.pop("hole")
    assert "its 'merge' is not marked" in problems.pop("half")
    assert "missing 1 required keyword-only argument: 'scale'" in notes["choosy"]
    assert set(problems.values()) == {None}
    assert set(problems) == {*BUILTINS, "idle", "choosy"}
