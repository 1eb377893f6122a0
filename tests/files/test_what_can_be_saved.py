"""A method's faults are reported when its prompt is made, or cost only the copy for PEFT: the training is saved."""

import types

import pytest
import torch
from helpers.products import in_turns
from safetensors.torch import load_file

import softprompt_zoo as zoo
from softprompt_zoo.files import peft_export
from softprompt_zoo.methods import prompt_tuning
from softprompt_zoo.model import making
from softprompt_zoo.testing import tiny_model

PARTS = {name: getattr(prompt_tuning, name) for name in ("Config", "Parameters", "build_virtual_tokens")}
IDS = torch.arange(3, 9)[None]


@pytest.fixture
def register():
    """Return a function that registers prompt tuning with changes as the method `faulty`."""
    yield lambda **changes: zoo.register(types.SimpleNamespace(**{**PARTS, **changes}), "faulty")
    zoo.unregister("faulty")


@zoo.hookimpl
def fails():
    raise KeyError("its own table")


@zoo.hookimpl
def returns_too_few(parameters):
    return zoo.InputTokens(parameters.embeddings[1:])


@zoo.hookimpl
def returns_nan(parameters):
    return zoo.InputTokens(parameters.embeddings * torch.nan)


class Tied(prompt_tuning.Parameters):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.again = self.embeddings


class Overlapping(prompt_tuning.Parameters):
    """Parameters with two buffers, one of which is the last rows of the other."""

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.register_buffer("table", torch.zeros(4, 2))
        self.register_buffer("end", self.table[2:])


class KeepsSettings(prompt_tuning.Parameters):
    def get_extra_state(self):
        return {"scale": 3}

    def set_extra_state(self, state):
        pass


class KeepsSparse(prompt_tuning.Parameters):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.register_buffer("graph", torch.eye(2).to_sparse())


MODEL = {}


class HoldsTheModel(prompt_tuning.Parameters):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.inner = MODEL["inner"]


class HoldsTheTable(prompt_tuning.Parameters):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.table = torch.nn.Parameter(MODEL["inner"].get_input_embeddings().weight[:2])


UNSAVABLE = {
    "merge fails": ({"merge": fails}, KeyError, "its own table"),
    "merge returns too few": ({"merge": returns_too_few}, zoo.ShapeError, "hook 'merge', returned embeddings"),
    "merge returns NaN": ({"merge": returns_nan}, zoo.PluginError, "hook 'merge', returned infinity or NaN"),
    "tied": ({"Parameters": Tied}, zoo.PluginError, "has 'again' and 'embeddings' in the same memory"),
    "overlapping": ({"Parameters": Overlapping}, zoo.PluginError, "has 'table' and 'end' in the same memory"),
    "no tensor": ({"Parameters": KeepsSettings}, zoo.PluginError, "keeps '_extra_state', of dict, in its state_dict"),
    "sparse": ({"Parameters": KeepsSparse}, zoo.PluginError, "keeps 'graph', of torch.sparse_coo"),
    "the model": ({"Parameters": HoldsTheModel}, zoo.PluginError, "holds 'inner.* which is part of the model"),
    "its table": ({"Parameters": HoldsTheTable}, zoo.PluginError, "holds 'table', which is part of the model"),
}


def is_refused_at_attaching(register, fault, architecture):
    changes, error, message = UNSAVABLE[fault]
    register(**changes)
    model = tiny_model(architecture)
    MODEL["inner"] = model.base_model
    before = model(IDS).logits
    with pytest.raises(error, match=message):
        zoo.get_method("faulty")(model)
    assert not hasattr(model, "prompts")
    assert torch.equal(model(IDS).logits, before)
    zoo.get_method("prompt_tuning")(model)
    with pytest.raises(error, match=message):
        model.prompts.add("second", "faulty")
    assert list(model.prompts) == ["default"]


@in_turns(fault=UNSAVABLE, architecture=["llama", "bert"])
def test_what_cannot_be_saved_is_refused_at_attaching(register, fault, architecture):
    is_refused_at_attaching(register, fault, architecture)


@pytest.mark.filterwarnings("ignore:.* on which no token depends:UserWarning")
@pytest.mark.parametrize("fault", ["tied", "the model"])
def test_without_the_check_that_test_is_red(register, fault, monkeypatch):
    monkeypatch.setattr(making, "check_can_be_saved", lambda *args: None)
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        is_refused_at_attaching(register, fault, "llama")


@zoo.hookimpl
def writes_no_tensor():
    return zoo.PeftFiles({"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": 3})


@zoo.hookimpl
def writes_no_json():
    return zoo.PeftFiles({"peft_type": {1, 2}}, {})


WRITERS = {"write_peft": fails, "no tensor": writes_no_tensor, "no JSON": writes_no_json}


def fails_later(hook):
    """Return a hook that works when the prompt is made, and never again."""
    calls = []

    @zoo.hookimpl
    def merge(parameters):
        calls.append(hook)
        if len(calls) > 1:
            raise KeyError("its own table")
        return zoo.InputTokens(parameters.embeddings)

    return {"merge": merge} if hook == "merge" else {"write_peft": WRITERS[hook]}


def training_survives(register, hook, folder):
    register(**fails_later(hook))
    model = zoo.get_method("faulty")(tiny_model("llama"), num_virtual_tokens=4)
    with torch.no_grad():
        model.prompts["default"].learned.embeddings.normal_()
    with pytest.warns(UserWarning, match="which zoo.load reads, but no copy for PEFT: (Key|Attribute|Type)Error: "):
        model.save_pretrained(folder)
    saved = load_file(folder / "model.safetensors")["prompts.default.learned.embeddings"]
    assert torch.equal(saved, model.prompts["default"].learned.embeddings)
    loaded = zoo.load(tiny_model("llama"), folder)
    assert torch.equal(loaded(IDS).logits, model.eval()(IDS).logits)
    return loaded


@pytest.mark.parametrize("hook", ["merge", *WRITERS])
def test_a_fault_in_what_is_written_for_peft_costs_that_copy_alone(register, hook, tmp_path):
    zoo.get_method("prompt_tuning")(tiny_model("llama")).save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    loaded = training_survives(register, hook, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()  # it was another prompt's
    with pytest.raises((KeyError, AttributeError, TypeError)):
        zoo.export(loaded, tmp_path / "export")


def test_without_the_guard_that_test_is_red(register, tmp_path, monkeypatch):
    monkeypatch.setattr(peft_export, "write_copy", lambda *_: False)
    with pytest.raises(pytest.fail.Exception, match="DID NOT WARN"):
        training_survives(register, "merge", tmp_path)


def test_prompts_that_the_user_tied_are_saved(tmp_path):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"))
    model.prompts.add("second", "prompt_tuning")
    model.prompts["second"].learned.embeddings = model.prompts["default"].learned.embeddings
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("llama"), tmp_path)
    for name in ("default", "second"):
        assert torch.equal(loaded.prompts[name].learned.embeddings, model.prompts["default"].learned.embeddings)
