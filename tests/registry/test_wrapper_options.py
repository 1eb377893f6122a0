"""Wrappers with options: chosen for a prompt, checked, and called only around its hooks."""

import copy
import dataclasses
import pickle
import types

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.files import prompt_records
from softprompt_zoo.testing import conformance_suite, tiny_model
from softprompt_zoo.testing.subject import Subject

TEXT = torch.arange(3, 9)[None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.Options):
    factor: float = 2.0

    def __post_init__(self):
        zoo.check_positive("factor", self.factor)


@zoo.hookimpl(wrapper=True)
def build_virtual_tokens(wrapper_config):
    tokens = yield
    return zoo.InputTokens(tokens.embeddings * wrapper_config.factor)


@pytest.fixture
def scale():
    zoo.register(types.SimpleNamespace(Config=Config, build_virtual_tokens=build_virtual_tokens), "scale")
    yield
    zoo.unregister("scale")


def tokens(model, name="default"):
    return model.prompts[name].place(model.prompts.backbone).tokens.embeddings


def test_a_wrapper_with_options_acts_on_the_prompts_that_chose_it(scale):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=3, wrappers={"Scale": {}})
    model.prompts.add("bare", "prompt_tuning", num_virtual_tokens=3)
    model.prompts.add("much", "prompt_tuning", num_virtual_tokens=3, wrappers={"scale": {"factor": 5}})
    for name, factor in {"default": 2, "bare": 1, "much": 5}.items():
        assert torch.equal(tokens(model, name), model.prompts[name].learned.embeddings * factor)
    configured = zoo.get_method("prompt_tuning").configure(wrappers={"scale": {"factor": 3}}, num_virtual_tokens=3)
    model.prompts.add("later", configured)
    assert torch.equal(tokens(model, "later"), model.prompts["later"].learned.embeddings * 3)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(tokens(again, "much"), tokens(model, "much"))


@pytest.mark.parametrize(
    ("wrappers", "error", "reason"),
    [
        ({"scal": {}}, zoo.UnknownMethodError, "no wrapper 'scal'; did you mean 'scale'"),
        ({"scale": {"fact": 2}}, TypeError, "unknown option 'fact' for wrapper 'scale'; did you mean 'factor'?"),
        ({"scale": {"factor": "two"}}, TypeError, "factor is 'two'"),
        ({"scale": {"factor": -1}}, ValueError, "factor is -1; expected a number above 0"),
        (("scale",), TypeError, r"wrappers is \('scale',\) \(tuple\); expected wrapper names with options"),
        ({"scale": 2}, TypeError, "the options of wrapper 'scale' are 2; expected a dictionary"),
    ],
)
def test_what_a_wrapper_cannot_take_is_refused_before_anything_changes(scale, wrappers, error, reason):
    model = tiny_model("llama")
    with pytest.raises(error, match=reason):
        zoo.get_method("prompt_tuning")(model, num_virtual_tokens=3, wrappers=wrappers)
    assert not hasattr(model, "prompts")


def test_a_wrapper_without_options_takes_none():
    zoo.register(types.SimpleNamespace(merge=_idle), "plain")
    try:
        with pytest.raises(TypeError, match="unknown option 'factor' for wrapper 'plain'; expected any of none"):
            zoo.get_method("prompt_tuning")(tiny_model("llama"), wrappers={"plain": {"factor": 2}})
    finally:
        zoo.unregister("plain")


@zoo.hookimpl(wrapper=True)
def _idle():
    return (yield)


def test_options_that_nobody_has_cannot_be_asked_for():
    with pytest.raises(zoo.PluginError, match=r"asks for 'wrapper_config' \(a wrapper with a Config that extends soft"):
        zoo.register(types.SimpleNamespace(build_virtual_tokens=build_virtual_tokens), "bare")


def test_a_ready_prompt_takes_no_wrappers(scale):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=3)
    with pytest.raises(TypeError, match="option 'wrappers' was given with a ready prompt"):
        model.prompts.add("copy", model.prompts["default"], wrappers={"scale": {}})


def test_the_suite_takes_wrappers_and_sees_one_that_is_lost(scale, tmp_path, monkeypatch):
    options = {"init": "random", "wrappers": {"scale": {"factor": 3.0}}}
    suite = conformance_suite("prompt_tuning", options, ["llama"])()
    base = Subject("llama", tiny_model("llama"))
    suite.test_promise_07_a_loaded_prompt_gives_the_same(suite.prompted("llama"), base, tmp_path)
    monkeypatch.setattr(prompt_records, "choose_wrappers", lambda *_: {})
    base = Subject("llama", tiny_model("llama"))
    with pytest.raises(AssertionError, match="other logits"):
        suite.test_promise_07_a_loaded_prompt_gives_the_same(suite.prompted("llama"), base, tmp_path)


@pytest.mark.parametrize("wrappers", [{"scale": {"factor": 4}}, {}], ids=["chosen", "not chosen"])
def test_a_saved_prompt_remembers_the_wrappers_that_it_chose(scale, tmp_path, wrappers):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=3, wrappers=wrappers)
    expected = model(input_ids=TEXT).logits
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("llama"), tmp_path)
    assert torch.equal(loaded(input_ids=TEXT).logits, expected)
    assert loaded.prompts["default"].wrappers == {name: Config(**options) for name, options in wrappers.items()}


def test_a_bank_refuses_what_it_would_leave_out(scale, tmp_path):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=3, wrappers={"scale": {}})
    model.prompts.add("bare", "prompt_tuning", num_virtual_tokens=3)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    with pytest.raises(zoo.UnsupportedError, match=r"prompt 'alice' has wrappers around its hooks \(scale\)"):
        bank.add_many({"bob": model.prompts["bare"], "alice": model.prompts["default"]})
    assert list(bank) == []
    bank.add("bob", model.prompts["bare"])
