"""Saved prompts from other versions of a plugin, from plugins that are gone, and from other wrappers."""

import contextlib
import copy
import dataclasses
import pickle
import types

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.files import prompt_folder
from softprompt_zoo.methods import prefix_tuning, prompt_tuning
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.testing import tiny_model

TEXT = torch.arange(3, 15)[None]


@contextlib.contextmanager
def installed(module, version="1.0", **hooks):
    """Register a plugin with the parts of a built-in method and hooks of its own."""
    names = ("Config", "Parameters", "build_virtual_tokens", "inject")
    parts = {name: getattr(module, name) for name in names if hasattr(module, name)}
    zoo.register(types.SimpleNamespace(**parts, **hooks), "moved")
    try:
        method = registry.lookup("moved")
        method.version, method.origin = version, f"packed {version}"
        yield
    finally:
        zoo.unregister("moved")


def logits(folder, architecture="mistral"):
    return zoo.load(tiny_model(architecture), folder)(input_ids=TEXT).logits


def save_older(folder):
    """Save a prompt of version 1.0, which had other names and twice the numbers; return its logits."""
    with installed(prompt_tuning):
        model = zoo.get_method("moved")(tiny_model("mistral"), num_virtual_tokens=3)
        model.save_pretrained(folder)
    index, tensors = prompt_folder.read(folder)
    entry = index.prompts["default"]
    config = {"length": 3, **{name: value for name, value in entry.config.items() if name != "num_virtual_tokens"}}
    index = dataclasses.replace(index, prompts={"default": dataclasses.replace(entry, config=config)})
    prompt_folder.write(folder, index, {"prompts.default.learned.twice": 2 * tensors["default"]["learned.embeddings"]})
    return model(input_ids=TEXT).logits


@zoo.hookimpl
def upgrade(options, state, version):
    assert version == "1.0"
    options["num_virtual_tokens"] = options.pop("length")
    state["embeddings"] = 0.5 * state.pop("twice")
    return options, state


def test_a_prompt_of_an_older_version_is_upgraded(tmp_path):
    expected = save_older(tmp_path)
    with installed(prompt_tuning, "2.0", upgrade=upgrade):
        assert torch.equal(logits(tmp_path), expected)


def test_one_of_the_same_version_is_not(tmp_path):
    save_older(tmp_path)
    text = (
        r"prompt 'default' in .* does not fit its method 'moved': unknown option 'length' for method 'moved'; expected "
        r"any of num_virtual_tokens, .*[a-z]$"
    )
    with installed(prompt_tuning, "1.0", upgrade=upgrade), pytest.raises(zoo.CheckpointError, match=text):
        logits(tmp_path)


@zoo.hookimpl
def returns_the_options_alone(options):
    return options


@zoo.hookimpl
def fails():
    raise KeyError("depth")


@zoo.hookimpl
def leaves_a_tensor(options, state):
    return {"num_virtual_tokens": 3}, state


@pytest.mark.parametrize(
    ("hooks", "reason"),
    [
        (
            {"upgrade": returns_the_options_alone},
            r"method 'moved' \(packed 2.0\), hook 'upgrade', returned .*expected a",
        ),
        ({"upgrade": fails}, r"'depth'; raised by method 'moved' \(packed 2.0\), hook 'upgrade'; to read it as it was"),
        (
            {"upgrade": leaves_a_tensor},
            r"and is read with packed 2.0\): tensor 'learned.embeddings' is missing; .*; to ",
        ),
        (
            {},
            "unknown option 'length' for method 'moved'.*; to read it as it was saved, run: pip install zoo.register==",
        ),
    ],
)
def test_what_cannot_be_upgraded_is_told_with_what_to_install(tmp_path, hooks, reason):
    save_older(tmp_path)
    with installed(prompt_tuning, "2.0", **hooks), pytest.raises(zoo.CheckpointError, match=reason):
        logits(tmp_path)


def test_a_merged_prompt_is_loaded_without_its_plugin(tmp_path):
    with installed(prefix_tuning):
        options = {"num_virtual_tokens": 3, "dropout": 0.5, "always_visible": True, "reparameterization": "mlp"}
        model = zoo.get_method("moved")(tiny_model("mistral"), **options)
        model.save_pretrained(tmp_path / "trained")
        zoo.merge(model).save_pretrained(tmp_path / "merged")
        expected, placed = model(input_ids=TEXT).logits, model.prompts["default"].place(model.prompts.backbone)
    with pytest.raises(zoo.UnknownMethodError, match="needs the method 'moved', which is not installed"):
        logits(tmp_path / "trained")
    loaded = zoo.load(tiny_model("mistral"), tmp_path / "merged")
    for one in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert torch.equal(one(input_ids=TEXT).logits, expected)
        assert one.prompts["default"].place(one.prompts.backbone).options == placed.options
    loaded.save_pretrained(tmp_path / "again")
    assert zoo.read_config(tmp_path / "again") == zoo.read_config(tmp_path / "merged")
    assert torch.equal(logits(tmp_path / "again"), expected)
    with installed(prefix_tuning, "2.0"):
        assert torch.equal(logits(tmp_path / "again"), expected)


@zoo.hookimpl
def doubles(tokens):
    return zoo.Placement(tokens.map(lambda embeddings: 2 * embeddings))


def test_where_the_method_places_other_tokens_a_merged_prompt_needs_it(tmp_path):
    with installed(prompt_tuning, inject=doubles):
        model = zoo.merge(zoo.get_method("moved")(tiny_model("mistral"), num_virtual_tokens=3))
        model.save_pretrained(tmp_path)
        assert torch.equal(logits(tmp_path), model(input_ids=TEXT).logits)
    with pytest.raises(zoo.UnknownMethodError, match="needs the method 'moved'"):
        logits(tmp_path)


@zoo.hookimpl(wrapper=True)
def build_virtual_tokens():
    tokens = yield
    return zoo.InputTokens(0.5 * tokens.embeddings)


@pytest.fixture
def save_halved(tmp_path):
    """Save a prompt under a wrapper, which is gone afterwards."""
    zoo.register(types.SimpleNamespace(build_virtual_tokens=build_virtual_tokens), "halve")
    try:
        zoo.get_method("prompt_tuning")(tiny_model("mistral"), num_virtual_tokens=3).save_pretrained(tmp_path)
        logits(tmp_path)  # without a warning, which would be an error here
    finally:
        zoo.unregister("halve")


def test_a_wrapper_that_is_missing_is_warned_of(save_halved, tmp_path):
    text = r"prompt 'default' in .* was saved with the wrapper 'halve' around its hooks, which is not installed: it was"
    with pytest.warns(UserWarning, match=text):
        logits(tmp_path)


def test_a_wrapper_of_another_version_is_warned_of(save_halved, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_folder, "read", with_the_wrapper_of(prompt_folder.read, "noises", "0.9"))
    zoo.register(types.SimpleNamespace(build_virtual_tokens=build_virtual_tokens), "halve")
    try:
        with pytest.warns(
            UserWarning, match="the wrapper 'halve' of noises 0.9, and now runs with that of zoo.register;"
        ):
            logits(tmp_path)
    finally:
        zoo.unregister("halve")


def with_the_wrapper_of(read, distribution, version):
    def changed(directory):
        index, tensors = read(directory)
        wrappers = {"halve": prompt_folder.WrapperEntry(distribution, version)}
        prompts = {name: dataclasses.replace(entry, wrappers=wrappers) for name, entry in index.prompts.items()}
        return dataclasses.replace(index, prompts=prompts), tensors

    return changed
