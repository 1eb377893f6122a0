"""Blends are prompts like any others: saved, loaded, mixed, copied; what cannot be blended or added is refused."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from helpers.several_prompts import assert_numbers, batch, disturb, everywhere, logits, prompted, tensors

import softprompt_zoo as zoo
from softprompt_zoo.operations.blends import BLENDS
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import LENGTHS, random_text


@everywhere
def test_originals_stay_bit_for_bit_and_get_no_gradients(architecture, method):
    model = prompted(architecture, method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = batch(model)
    for how in BLENDS:
        extra = {"initial": model.prompts["c"]} if how == "task_vectors" else {}
        blended = zoo.blend([model.prompts["a"], model.prompts["b"]], how=how, **extra)
        added = model.prompts.add(how, blended)
        assert all(parameter.requires_grad for parameter in blended.parameters())
        model(**text, prompts=[[how]] * len(LENGTHS)).logits.sum().backward()
        assert all(parameter.grad is not None for parameter in added.parameters())
        with torch.no_grad():
            for parameter in added.parameters():
                parameter.zero_()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    originals = [parameter for name in "abc" for parameter in model.prompts[name].parameters()]
    assert all(parameter.grad is None for parameter in originals)


def test_methods_may_be_mixed_and_the_blend_is_plain():
    model = prompted("llama", "prompt_tuning")
    model.prompts.add("recurrent", "p_tuning", num_virtual_tokens=4)
    model.prompts.add("net", "prefix_tuning", num_virtual_tokens=4, reparameterization="mlp")
    model.prompts.add("direct", "prefix_tuning", num_virtual_tokens=4)
    for pair in (("a", "recurrent"), ("net", "direct")):
        parts = [tensors(model.prompts[name], model) for name in pair]
        blended = zoo.blend([model.prompts[name] for name in pair])
        assert blended.is_merged
        assert_numbers(blended, {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}, model)


def test_a_blend_is_saved_loaded_exported_and_a_start(tmp_path):
    model = prompted("llama", "prefix_tuning", dropout=0.1, always_visible=True)
    blended = zoo.blend([model.prompts["a"], model.prompts["b"]])
    model.prompts.add("blend", blended)
    model.prompts.activate("blend")
    model.save_pretrained(tmp_path / "all")
    loaded = zoo.load(tiny_model("llama"), tmp_path / "all")
    assert torch.equal(logits(loaded, "blend"), logits(model, "blend"))
    assert loaded.prompts["blend"].config.dropout == 0.1
    assert loaded.prompts["blend"].config.always_visible is True
    model.prompts.add("more", "prefix_tuning", num_virtual_tokens=4, init=blended)
    assert_numbers(model.prompts["more"], tensors(blended, model), model)


def test_folders_are_blended_like_the_prompts_in_them(tmp_path):
    model = prompted("gpt2", "prompt_tuning")
    for name in "ab":
        zoo.export(model, tmp_path / name, name=name)
    folders = [tmp_path / "a", str(tmp_path / "b")]
    expected = tensors(zoo.blend([model.prompts["a"], model.prompts["b"]]), model)
    assert_numbers(zoo.blend(folders, model=model), expected, model)
    assert_numbers(zoo.blend([folders[0], model.prompts["b"]]), expected, model)
    bare = tiny_model("gpt2")
    started = zoo.get_method("prompt_tuning")(bare, num_virtual_tokens=4, init=zoo.blend(folders, model=bare))
    assert_numbers(started.prompts["default"], expected, started)
    with pytest.raises(ValueError, match="none of the prompts is on a model"):
        zoo.blend(folders)


def test_gated_prompts_are_blended_with_their_gates(llama_adapter):
    model = prompted("llama", "llama_adapter")
    prompts = [model.prompts["a"], model.prompts["b"]]
    parts = [prompt.merged_tokens(model.prompts.backbone).sites["decoder"] for prompt in prompts]
    blended = zoo.blend(prompts).merged_tokens(model.prompts.backbone).sites["decoder"]
    for kind in ("keys", "values", "gates"):
        for found, one, other in zip(getattr(blended, kind), *(getattr(part, kind) for part in parts), strict=True):
            torch.testing.assert_close(found, (one + other) / 2)
    with pytest.raises(zoo.UnsupportedError, match="each have their own softmax"):
        zoo.blend(prompts, how="concatenate")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"how": "median"}, ValueError, "how is 'median'; expected one of 'mean'"),
        ({"weights": [1.0]}, ValueError, "expected 2 numbers, one for each prompt"),
        ({"weights": [1.0, math.nan]}, ValueError, "weights has nan; expected finite"),
        ({"weights": [1.0, math.inf], "how": "sum"}, ValueError, "weights has inf"),
        ({"weights": [1.0, "2"]}, TypeError, r"weights has '2' \(str\)"),
        ({"weights": [1.0, True]}, TypeError, r"weights has True"),
        ({"weights": np.ones((2, 2))}, TypeError, r"weights has \[1.0, 1.0\] \(list\); expected real numbers"),
        ({"weights": np.array([True, False])}, TypeError, r"weights has True"),
        ({"weights": [1.0, 1j]}, TypeError, r"weights has 1j \(complex\)"),
        ({"weights": [1.0, -1.0]}, ValueError, "at least 0"),
        ({"weights": [0.0, 0.0]}, ValueError, "not all 0"),
        ({"weights": [1.0, 1.0], "how": "concatenate"}, ValueError, "how='concatenate' takes none"),
        ({"how": "task_vectors"}, ValueError, "initial is missing"),
        ({"names": "a"}, ValueError, "was given 1 prompts; expected at least two"),
        ({"names": "abc", "how": "slerp"}, ValueError, "was given 3 prompts; expected two"),
        ({"names": "ac"}, zoo.UnsupportedError, r"prompts\[1\] has 3 virtual tokens, but prompts\[0\] has 4"),
        ({"names": "ap"}, zoo.UnsupportedError, r"prompts\[1\] is at the keys and values of decoder"),
        ({"names": "pd"}, zoo.UnsupportedError, r"prompts\[1\] has dropout=0.5, but prompts\[0\] has 0.0"),
        ({"names": "am"}, zoo.UnsupportedError, r"prompts\[1\] is a prompt with 2 tasks"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    model = prompted("llama", "prompt_tuning", (4, 4, 3))
    model.prompts.add("p", "prefix_tuning", num_virtual_tokens=4)
    model.prompts.add("d", "prefix_tuning", num_virtual_tokens=4, dropout=0.5)
    model.prompts.add("m", "multitask_prompt_tuning", num_virtual_tokens=4, num_tasks=2)
    names = arguments.pop("names", "ab") if "names" in arguments else "ab"
    options = {key: value for key, value in arguments.items() if key != "names"}
    with pytest.raises(error, match=message):
        zoo.blend([model.prompts[name] for name in names], **options)


def test_other_refusals(tmp_path):
    model = prompted("llama", "prompt_tuning")
    a = model.prompts["a"]
    with pytest.raises(TypeError, match="prompts is str; expected a list"):
        zoo.blend("a")
    with pytest.raises(TypeError, match=r"prompts\[1\] is int; expected model.prompts\[name\]"):
        zoo.blend([a, 3])
    with pytest.raises(zoo.CheckpointError, match="is not a folder"):
        zoo.blend([a, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="initial was given with how='mean'"):
        zoo.blend([a, a], initial=a)
    with pytest.raises(zoo.UnsupportedError, match="leaves no room for text"):
        zoo.blend([a] * 16, how="concatenate")
    other = prompted("gpt_neox", "prefix_tuning").prompts["a"]
    with pytest.raises(zoo.BackboneMismatchError, match=r"prompts\[1\] was made for a model with layers"):
        zoo.blend([prompted("llama", "prefix_tuning").prompts["a"], other])


def test_trained_heads_are_not_blended_silently():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=101, num_labels=3, **sizes)).eval()
    model = zoo.get_method("p_tuning_v2")(model, "a", num_virtual_tokens=3)
    model.prompts.add("b", "p_tuning_v2", num_virtual_tokens=3)
    prompts = [model.prompts["a"], model.prompts["b"]]
    with pytest.raises(zoo.UnsupportedError, match=r"prompts\[0\] has a trained task head"):
        zoo.blend(prompts)
    assert zoo.blend(prompts, drop_heads=True).head is None
    disturb(prompts[0])
    shorter = zoo.truncate(prompts[0], 3)
    model.prompts.add("same", shorter)
    text = {"input_ids": random_text(6, 1)}
    assert torch.equal(model(**text, prompts=["same"]).logits, model(**text, prompts=["a"]).logits)
    small = BertForSequenceClassification(BertConfig(vocab_size=101, num_labels=2, **sizes))
    small = zoo.get_method("prefix_tuning")(small, num_virtual_tokens=3)
    with pytest.raises(zoo.BackboneMismatchError, match="trained task head"):
        small.prompts.add("a", shorter)


@everywhere
def test_a_ready_prompt_is_added_as_a_copy(architecture, method):
    model, other = prompted(architecture, method), prompted(architecture, "prompt_tuning")
    added = other.prompts.add("theirs", model.prompts["a"])
    assert added is other.prompts["theirs"]
    assert_equal(logits(other, "theirs"), logits(model, "a"), "the copy")
    disturb(added)
    assert not torch.equal(logits(other, "theirs"), logits(model, "a"))


def test_what_cannot_be_added_changes_nothing():
    model = prompted("llama", "prompt_tuning")
    a = model.prompts["a"]
    with pytest.raises(TypeError, match="option 'num_virtual_tokens' was given with a ready prompt"):
        model.prompts.add("more", a, num_virtual_tokens=4)
    with pytest.raises(zoo.PromptExistsError):
        model.prompts.add("a", a)
    narrow = prompted("opt_narrow", "prompt_tuning")
    with pytest.raises(zoo.BackboneMismatchError, match="hidden_size"):
        narrow.prompts.add("more", a)
    alone = copy.deepcopy(a)  # belongs to no model, so only its own sizes can tell
    assert alone.backbone is None
    with pytest.raises(zoo.BackboneMismatchError, match=r"\(4, 32\)"):
        narrow.prompts.add("more", alone)
    assert narrow.prompts.keys() == ["a", "b", "c"]
    assert model.prompts.keys() == ["a", "b", "c"]


def test_prompts_know_the_model_they_are_copied_with():
    model = prompted("llama", "prompt_tuning")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.prompts["a"].backbone is other.prompts.backbone
        assert zoo.similarity(other.prompts["a"], other.prompts["b"]) == zoo.similarity(
            model.prompts["a"], model.prompts["b"]
        )
