"""PEFT's prefixes on models whose layers differ in size, or read the keys and values of other layers."""

import peft
import pytest
import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, Gemma4ForCausalLM, Gemma4TextConfig

import softprompt_zoo as zoo
from softprompt_zoo.backbone.probe import Probe
from softprompt_zoo.files import peft_prefixes
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text
from softprompt_zoo.trial import choice_of_reach

TEXT = random_text(7, 3)
SIZES = {
    "vocab_size": 101,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": 101,
    "hidden_size_per_layer_input": 4,
    "max_position_embeddings": 64,
}


def gemma4(shared, **sizes):
    return Gemma4ForCausalLM(Gemma4TextConfig(**SIZES, num_kv_shared_layers=shared, **sizes))


def gemma3n(shared):
    sizes = {"laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4}
    return Gemma3nForCausalLM(Gemma3nTextConfig(**SIZES, num_kv_shared_layers=shared, **sizes))


MODELS = {
    "two widths": lambda: gemma4(0, global_head_dim=16),
    "two widths, shared": lambda: gemma4(2, global_head_dim=16, use_double_wide_mlp=True),
    "one width, shared": lambda: gemma4(2, global_head_dim=8, use_double_wide_mlp=True),
    "one width, shared, of a type that PEFT does not know": lambda: gemma3n(2),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    return model


@torch.no_grad()
def run(model):
    return model(input_ids=TEXT).logits


def in_peft(name, folder):
    return peft.PeftModel.from_pretrained(build(name), folder).eval()


def check_import(name, folder):
    wrapped = peft.get_peft_model(build(name), peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for key, parameter in wrapped.named_parameters():
        if key.startswith("prompt_encoder"):
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(folder)
    expected = run(in_peft(name, folder))
    assert not torch.allclose(expected, run(build(name)), atol=1e-2), "PEFT dropped the prompt"
    model = zoo.load(build(name), folder)
    assert_equal(run(model), expected, "PEFT's logits")
    return model, expected


@EVERY_MODEL
@pytest.mark.filterwarnings("ignore:Prefix tuning injected")
def test_pefts_prefix_loads_and_goes_back(name, tmp_path):
    model, expected = check_import(name, tmp_path / "theirs")
    zoo.export(model, tmp_path / "back")
    assert_equal(run(in_peft(name, tmp_path / "back")), expected, "PEFT's logits")


def check_export(name, folder):
    model = zoo.get_method("prefix_tuning")(build(name), num_virtual_tokens=4)
    torch.manual_seed(2)
    for parameter in model.prompts.parameters():
        torch.nn.init.normal_(parameter)
    zoo.export(model, folder)
    assert_equal(run(in_peft(name, folder)), run(model), "PEFT's logits")


def test_a_prefix_of_two_widths_goes_to_peft(tmp_path):
    check_export("two widths", tmp_path)


@pytest.mark.parametrize("name", [name for name in MODELS if "shared" in name])
def test_a_prefix_of_its_own_in_a_layer_without_keys_of_its_own_is_refused(name, tmp_path):
    with pytest.raises(zoo.UnsupportedError, match="layer 2 of this model reads the keys and values of layer 0, in"):
        check_export(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_widths_of_a_type_for_which_peft_does_not_cut_are_refused(tmp_path, monkeypatch):
    model, _ = check_import("two widths", tmp_path)
    monkeypatch.setattr(peft_prefixes, "CUTTING", ("gemma2",))
    with pytest.raises(zoo.UnsupportedError, match="of different sizes"):
        zoo.export(model, tmp_path / "new")
    with pytest.raises(zoo.UnsupportedError, match="differ in size"):
        zoo.load(build("two widths"), tmp_path)


@pytest.mark.filterwarnings("ignore:Prefix tuning injected")
@pytest.mark.parametrize("name", [name for name in MODELS if "shared" in name])
def test_the_check_notices_layers_that_share(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Probe, "source", lambda self, key, is_cross: None)
    monkeypatch.setattr(choice_of_reach, "_FOUND", {})
    with pytest.raises(AssertionError):
        check_import(name, tmp_path)
    with pytest.raises(AssertionError):
        check_export(name, tmp_path / "ours")


def test_the_check_notices_another_part_of_a_wide_row(tmp_path, monkeypatch):
    flipped = lambda tokens, shape, pad=peft_prefixes._padded: pad(  # noqa: E731
        peft_prefixes.SiteTokens(tokens.values, tokens.keys), shape
    )
    monkeypatch.setattr(peft_prefixes, "_padded", flipped)
    with pytest.raises(AssertionError):
        check_export("two widths", tmp_path)
