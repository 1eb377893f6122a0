"""The trial on real words at attaching: what it refuses, what it leaves alone, and what follows from it."""

import pytest
import torch
from helpers.products import in_turns
from helpers.swept_models import build
from transformers import LlamaConfig, LlamaForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.models import TINY_MODELS
from softprompt_zoo.testing.sizes import ROTARY
from softprompt_zoo.testing.subject import random_text
from softprompt_zoo.trial import rehearsal
from softprompt_zoo.trial.examination import examine

TEXT = random_text(9, 1)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Forget what other tests have found."""
    monkeypatch.setattr(rehearsal, "_FOUND", {})


def test_a_trial_leaves_the_model_and_the_random_numbers_alone():
    model = tiny_model("llama").train()
    before, state = torch.get_rng_state(), dict(model.state_dict())
    examine(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert dict(model.state_dict()).keys() == state.keys()


@in_turns(architecture=TINY_MODELS, dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_reason_to_refuse(architecture, dtype):
    zoo.get_method("prompt_tuning")(tiny_model(architecture).to(dtype), num_virtual_tokens=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_looks_back_by_itself_is_refused(dtype):
    model = build("causal", "llama").to(dtype)
    layer = model.model.layers[1]
    handle = layer.register_forward_pre_hook(lambda module, args: (args[0] + args[0].roll(1, dims=1), *args[1:]))
    with pytest.raises(zoo.UnsupportedError, match="do not act as these words do"):
        zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)
    handle.remove()
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)


def test_what_a_trial_raises_is_the_reason():
    model = tiny_model("llama")

    def fail(module, args):
        if args[0].shape[1] != 3:  # the probe's length
            raise ZeroDivisionError("no such text")

    model.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(zoo.UnsupportedError, match="ZeroDivisionError: no such text"):
        zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)


def test_a_model_built_alike_is_not_tried_again(monkeypatch):
    tried = []
    monkeypatch.setattr(rehearsal, "_try", lambda family, stacks: tried.append(family) or rehearsal.Findings())
    for layers in (2, 2, 3):
        model = LlamaForCausalLM(LlamaConfig(**{**ROTARY, "num_hidden_layers": layers}))
        zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2, init="random")
    assert len(tried) == 2


def test_no_trial_on_the_meta_device():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**ROTARY))
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2, init="random")


def test_values_of_another_width_than_keys_are_kept_in_our_format_only(tmp_path):
    model = zoo.get_method("prefix_tuning")(build("causal", "deepseek_v3"), num_virtual_tokens=3)
    [shape, *_] = model.prompts.backbone.layers["decoder"]
    assert shape.key_size[1] != shape.value_size[1]
    with torch.no_grad():
        expected = model(TEXT).logits
        model.save_pretrained(tmp_path)
        loaded = zoo.load(build("causal", "deepseek_v3"), tmp_path)
        assert torch.equal(loaded(TEXT).logits, expected)
    with pytest.raises(zoo.UnsupportedError, match="keys and values of different sizes"):
        zoo.export(model, tmp_path / "peft", to="peft")


def test_prompts_of_several_lengths_are_refused_where_padding_changes_the_states():
    model = zoo.get_method("prompt_tuning")(build("masked", "convbert"), num_virtual_tokens=3)
    model.prompts.add("longer", "prompt_tuning", num_virtual_tokens=5)
    model(TEXT.expand(2, -1), prompts=["default", "default"])
    with pytest.raises(zoo.UnsupportedError, match="give each length its own call"):
        model(TEXT.expand(2, -1), prompts=["default", "longer"])


def test_generate_is_refused_where_it_counts_otherwise_than_the_model():
    model = zoo.get_method("prefix_tuning")(build("causal", "roberta"), num_virtual_tokens=3)
    with pytest.raises(zoo.UnsupportedError, match="itself counts from 1"):
        model.generate(TEXT, max_new_tokens=2)
