"""Arguments of a prompted model's `save_pretrained`: every keyword takes effect, changes nothing, or is refused."""

import inspect

import pytest
import torch
from helpers.products import in_turns
from transformers import PreTrainedModel

import softprompt_zoo as zoo
from softprompt_zoo.files import save_arguments
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.models import CLASSIFICATION

IDS = torch.arange(4, 10)[None]


@pytest.fixture
def model():
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), "a", num_virtual_tokens=4)
    model.prompts.add("b", "prefix_tuning", num_virtual_tokens=3)
    model.prompts.add("ab", "p_tuning", num_virtual_tokens=2)
    return model.eval()


def saves_only(model, folder, chosen, active, **arguments):
    """Check that a save has only the chosen prompts, with their numbers, and the right ones active."""
    model.save_pretrained(folder, **arguments)
    loaded = zoo.load(tiny_model("llama"), folder).eval()
    assert list(loaded.prompts) == chosen
    assert loaded.prompts.active == active
    for name in chosen:
        assert torch.equal(loaded(IDS, prompts=[name]).logits, model(IDS, prompts=[name]).logits)
    return loaded


@pytest.mark.parametrize("keyword", ["names", "selected_adapters"])
@pytest.mark.parametrize(
    ("given", "chosen", "active"),
    [("b", ["b"], ("b",)), (["b"], ["b"], ("b",)), (["ab", "a"], ["a", "ab"], ("a",)), (("b", "ab"), ["b", "ab"], ())],
)
def test_some_of_several_prompts_are_saved(model, tmp_path, keyword, given, chosen, active):
    saves_only(model, tmp_path, chosen, active, **{keyword: given})
    assert (tmp_path / "adapter_config.json").exists() == (len(active) == 1)
    saves_only(model, tmp_path, ["a", "b", "ab"], ("a",))


def test_peft_reads_the_one_that_was_saved(model, tmp_path):
    peft = pytest.importorskip("peft")
    model.save_pretrained(tmp_path, selected_adapters=["b"])
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    torch.testing.assert_close(theirs(IDS).logits, model(IDS, prompts=["b"]).logits, rtol=1e-4, atol=1e-4)


def test_a_gathered_state_is_cut_too(model, tmp_path):
    saves_only(model, tmp_path, ["b"], ("b",), names="b", state_dict=model.state_dict())


REFUSED = {
    "safe_serialization": ({"safe_serialization": False}, zoo.UnsupportedError, "safetensors only"),
    "variant": ({"variant": "fp16"}, zoo.UnsupportedError, "no variants"),
    "a repository alone": ({"repo_id": "me/prompt"}, TypeError, "got repo_id without push_to_hub=True"),
    "distributed": ({"distributed_checkpoint": True}, zoo.UnsupportedError, "one file"),
    "unknown": ({"nonsense": 1}, TypeError, "unknown keyword 'nonsense'"),
    "unknown name": ({"names": ["c"]}, zoo.UnknownPromptError, "no prompt 'c', named in names"),
    "twice": ({"names": "a", "selected_adapters": ["a"]}, TypeError, "mean the same"),
    "none": ({"selected_adapters": []}, ValueError, "selected_adapters is empty"),
    "no names": ({"names": 3}, TypeError, "names is 3"),
}


def is_refused(model, folder, arguments, error, message):
    with pytest.raises(error, match=message):
        model.save_pretrained(folder, **arguments)
    assert not folder.exists()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(model, tmp_path, case):
    is_refused(model, tmp_path / "new", *REFUSED[case])


def test_swallowed_keywords_are_red(model, tmp_path, monkeypatch):
    place = "softprompt_zoo.files.save_arguments.check_arguments"
    monkeypatch.setattr(place, lambda names, keywords, there: tuple(there))
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        is_refused(model, tmp_path / "new", *REFUSED["unknown"])
    with pytest.raises(AssertionError):
        saves_only(model, tmp_path, ["b"], ("b",), names="b")


@pytest.mark.parametrize(
    "arguments",
    [
        {"safe_serialization": True},  # sentence-transformers
        {"max_shard_size": "5GB"},  # push_to_hub
        {"is_main_process": True, "save_function": torch.save},  # accelerate's examples
        {"save_peft_format": True, "save_original_format": False, "variant": None, "token": None},
        {"save_embedding_layers": "auto", "path_initial_model_for_weight_conversion": None},  # PEFT
    ],
)
def test_what_changes_nothing_is_taken(model, tmp_path, arguments):
    saves_only(model, tmp_path, ["a", "b", "ab"], ("a",), **arguments)


def test_every_keyword_of_transformers_and_peft_is_known():
    peft = pytest.importorskip("peft")
    known = {*save_arguments.WITHOUT_EFFECT, *save_arguments.DEFAULTS, "selected_adapters", "push_to_hub"}
    for function in (PreTrainedModel.save_pretrained, peft.PeftModel.save_pretrained):
        names = set(inspect.signature(function).parameters) - {"self", "kwargs", "save_directory"}
        assert names - {"is_main_process", "state_dict"} <= known


@in_turns(architecture=["llama", "bert", "t5"], method=["prompt_tuning", "prefix_tuning", "p_tuning_v2"])
def test_a_head_that_is_not_there_is_not_trained_without_a_word(architecture, method):
    model = tiny_model(architecture)
    with pytest.raises(zoo.UnsupportedError, match="train_head is True, but this model has no task head"):
        zoo.get_method(method)(model, train_head=True)
    assert not hasattr(model, "prompts")
    zoo.get_method(method)(model)  # p_tuning_v2 trains a head only where there is one
    classifier = zoo.get_method(method)(tiny_model(architecture, task=CLASSIFICATION), train_head=True)
    assert classifier.prompts["default"].head is not None
