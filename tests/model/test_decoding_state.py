"""The lifetime of built prompts: as long as the text they were built for; the next text sees every change.

The oracle is the base model on real tokens. It computes them once per text, in its state at that moment, and keeps
them in the text's cache.
"""

import copy
import gc
import pickle
import sys
import threading
import weakref

import peft
import pytest
import torch
from helpers.products import in_turns

import softprompt_zoo as zoo
from softprompt_zoo.model import resolve
from softprompt_zoo.sites import decoding_state
from softprompt_zoo.sites.shared_pass import causal_prefix
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text

WORDS, TEXT, NEXT = random_text(4, 1), random_text(7, 2), random_text(1, 3)
ARCHITECTURES = ["llama", "gpt2", "gemma3", "bloom", "gptj"]


def made_of_words(architecture="llama"):
    """Return a model whose prompt is the embeddings of real words, and the base model."""
    model = zoo.get_method("prompt_tuning")(tiny_model(architecture), num_virtual_tokens=4)
    with torch.no_grad():
        model.prompts["default"].learned.embeddings.copy_(model.prompts.backbone.embed(WORDS[0]))
    return model, tiny_model(architecture)


def layer_of(model):
    return next(module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList))[0]


def linear_of(model):
    return next(m for m in layer_of(model).modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2)


def scaled(output, factor):
    """Scale a part of a layer's states: a factor on all of them would be lost in the next norm."""
    states, *rest = output if isinstance(output, tuple) else (output,)
    states = torch.cat([states[..., :3] * factor, states[..., 3:]], dim=-1)
    return (states, *rest) if isinstance(output, tuple) else states


def scale_through_data(model):
    linear_of(model).weight.data[:3].mul_(2)


def copy_through_data(model):
    weight = linear_of(model).weight
    weight.data[:3].copy_(2 * weight.data[:3])


def scale_in_numpy(model):
    linear_of(model).weight.detach().numpy()[:3] *= 2


def hook_a_layer(model):
    layer_of(model).register_forward_hook(lambda module, args, output: scaled(output, 3.0))


def steer_by_a_value_in_a_closure(model):
    model.steer["by"] = 3.0


def replace_a_forward(model):
    linear = linear_of(model)
    forward = linear.forward
    linear.forward = lambda states: scaled(forward(states), 2.0)


def replace_a_module(model):
    layer = layer_of(model)
    name = next(name for name, child in layer.named_modules() if child is linear_of(model))
    parent = layer.get_submodule(name.rpartition(".")[0])
    other = copy.deepcopy(linear_of(model))
    other.weight.data[:3].mul_(2)
    setattr(parent, name.rpartition(".")[2], other)


def change_an_attribute(model):
    norm = next(m for m in layer_of(model).modules() if hasattr(m, "variance_epsilon") or hasattr(m, "eps"))
    setattr(norm, "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps", 1.0)


CHANGES = [
    scale_through_data,
    copy_through_data,
    scale_in_numpy,
    hook_a_layer,
    steer_by_a_value_in_a_closure,
    replace_a_forward,
    replace_a_module,
    change_an_attribute,
]


def check_the_next_text_sees(change, architecture):
    model, base = made_of_words(architecture)
    for each in (model, base):
        each.steer = {"by": 1.0}
        layer_of(each).register_forward_hook(lambda module, args, output, by=each.steer: scaled(output, by["by"]))
    with torch.no_grad():
        before = model(TEXT).logits
        for each in (model, base):
            change(each)
        after = model(TEXT).logits
        expected = base(torch.cat([WORDS, TEXT], dim=1)).logits[:, 4:]
    assert not torch.allclose(after, before, atol=1e-3)
    assert_equal(after, expected, f"the next text after {change.__name__}")


@in_turns(change=CHANGES, architecture=["llama", "gpt2", "gptj"])
def test_the_next_text_sees_every_change(change, architecture):
    check_the_next_text_sees(change, architecture)


def test_the_next_text_sees_a_changed_buffer():
    model, base = made_of_words()
    with torch.no_grad():
        model(TEXT)
        for each in (model, base):
            each.model.rotary_emb.inv_freq.mul_(0.5)
        expected = base(torch.cat([WORDS, TEXT], dim=1)).logits[:, 4:]
        assert_equal(model(TEXT).logits, expected, "with another rotation")


def test_the_next_text_sees_a_swapped_adapter():
    model, base = (peft.get_peft_model(each, lora()) for each in (tiny_model("llama"), tiny_model("llama")))
    base.load_state_dict(model.state_dict())
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=4)
    inside = model.get_base_model()
    with torch.no_grad():
        inside.prompts["default"].learned.embeddings.copy_(inside.prompts.backbone.embed(WORDS[0]))
        model(TEXT)
        for each in (model, base):
            for name, parameter in each.named_parameters():
                if "lora_B" in name:
                    parameter.data.mul_(4)
        expected = base(torch.cat([WORDS, TEXT], dim=1)).logits[:, 4:]
        assert_equal(model(TEXT).logits, expected, "with the other adapter")


def lora():
    torch.manual_seed(5)
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def test_the_next_text_sees_a_prompt_changed_through_data():
    model, base = made_of_words()
    other = random_text(4, 9)
    with torch.no_grad():
        model(TEXT)
        model.prompts["default"].learned.embeddings.data.copy_(base.get_input_embeddings()(other[0]))
        expected = base(torch.cat([other, TEXT], dim=1)).logits[:, 4:]
        assert_equal(model(TEXT).logits, expected, "with the other prompt")


@pytest.mark.parametrize("how", ["autocast", "dropout", "inference_mode"])
def test_how_the_text_before_was_computed_does_not_last(how):
    model, base = made_of_words()
    context = {"autocast": torch.autocast("cpu", dtype=torch.bfloat16), "inference_mode": torch.inference_mode()}
    with torch.no_grad():
        if how == "dropout":
            inner_training(model, True, 0.5)
            model(TEXT)
            inner_training(model, False, 0.0)
        else:
            with context[how]:
                model(TEXT)
        expected = base(torch.cat([WORDS, TEXT], dim=1)).logits[:, 4:]
        assert_equal(model(TEXT).logits, expected, f"after {how}")


def inner_training(model, is_training, dropout):
    for module in model.model.modules():
        module.training = is_training
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout


def keep_for_good(monkeypatch):
    """Undo what is tested: every text continues with the prompts of the first text."""
    first = decoding_state.DecodingState(None)
    monkeypatch.setattr(resolve, "_text_of", lambda prompts, cache: (None, first))


@pytest.mark.parametrize("change", [scale_through_data, hook_a_layer, replace_a_module], ids=lambda c: c.__name__)
def test_the_check_notices_prompts_that_outlive_their_text(monkeypatch, change):
    keep_for_good(monkeypatch)
    with pytest.raises(AssertionError):
        check_the_next_text_sees(change, "llama")


def check_decoding_goes_on(architecture, cached):
    model, base = made_of_words(architecture)
    with torch.no_grad():
        cache = model(TEXT, use_cache=True).past_key_values
        expected = base(torch.cat([WORDS, TEXT], dim=1), use_cache=True).past_key_values
        for each in (model, base):
            scale_through_data(each)
        model(TEXT)  # another text, between two steps of the first
        cache = cached(cache)
        for _ in range(2):
            step = model(NEXT, past_key_values=cache)
            assert_equal(step.logits, base(NEXT, past_key_values=expected).logits, "a step with the cache")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_text_goes_on_with_the_prompts_it_began_with(architecture):
    check_decoding_goes_on(architecture, cached=lambda cache: cache)


def test_a_copied_cache_goes_on_with_them_too():
    check_decoding_goes_on("llama", cached=copy.deepcopy)


def test_the_check_notices_prompts_that_are_built_at_every_step(monkeypatch):
    monkeypatch.setattr(decoding_state, "decoding_state_of", lambda cache: None)
    monkeypatch.setattr("softprompt_zoo.model.resolve.decoding_state_of", lambda cache: None)
    with pytest.raises(AssertionError):
        check_decoding_goes_on("llama", cached=lambda cache: cache)


def test_a_stored_cache_holds_no_prompts():
    model, _ = made_of_words()
    with torch.no_grad():
        cache = model(TEXT, use_cache=True).past_key_values
        expected = model(NEXT, past_key_values=copy.deepcopy(cache)).logits
        stored = pickle.loads(pickle.dumps(cache))
        assert not getattr(stored, decoding_state.ATTRIBUTE).placements
        assert_equal(model(NEXT, past_key_values=stored).logits, expected, "with the cache that was stored")


def test_forget_lets_a_text_that_was_begun_see_another_prompt():
    model, base = made_of_words()
    other = random_text(4, 9)
    with torch.no_grad():
        cache = model(TEXT, use_cache=True).past_key_values
        as_it_began = model(NEXT, past_key_values=copy.deepcopy(cache)).logits
        model.prompts["default"].learned.embeddings.data.copy_(base.get_input_embeddings()(other[0]))
        assert_equal(model(NEXT, past_key_values=copy.deepcopy(cache)).logits, as_it_began, "without forgetting")
        model.prompts.forget()
        expected = base(torch.cat([WORDS, TEXT], dim=1), use_cache=True).past_key_values
        for layer, of_others in zip(expected.layers, base(other, use_cache=True).past_key_values.layers, strict=True):
            layer.keys[:, :, :4], layer.values[:, :, :4] = of_others.keys, of_others.values
        assert_equal(
            model(NEXT, past_key_values=cache).logits, base(NEXT, past_key_values=expected).logits, "forgotten"
        )


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_one_pass_serves_one_generate_and_nothing_is_left_behind(monkeypatch, arguments):
    model, _ = made_of_words()
    made = []

    def counted(*given):
        made.append(weakref.ref(prefix := causal_prefix(*given)))
        return prefix

    monkeypatch.setattr(decoding_state, "causal_prefix", counted)
    for rounds in (1, 2):
        model.generate(TEXT, max_new_tokens=5, do_sample=False, disable_compile=True, **arguments)
        assert len(made) == rounds
    gc.collect()
    assert not any(one() for one in made)
    with torch.no_grad():
        cache = model(TEXT, use_cache=True).past_key_values
        for _ in range(3):
            model(NEXT, past_key_values=cache)
    assert len(made) == 3
    assert made[-1]() is not None
    del cache
    gc.collect()
    assert made[-1]() is None


def test_threads_with_many_combinations():
    model, _ = made_of_words()
    for index in range(5):
        model.prompts.add(f"p{index}", "prompt_tuning", num_virtual_tokens=2 + index)
    rows = [[f"p{index}", f"p{other}"] for index in range(5) for other in range(5) if index != other]
    with torch.no_grad():
        expected = {tuple(row): model(TEXT, prompts=[row]).logits for row in rows}
    wrong = []

    def work(start):
        try:
            with torch.no_grad():
                for row in rows[start::2]:
                    cache = model(TEXT[:, :4], prompts=[row], use_cache=True).past_key_values
                    logits = model(TEXT[:, 4:], prompts=[row], past_key_values=cache).logits
                    assert_equal(logits, expected[tuple(row)][:, 4:], f"{row}")
        except Exception as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(index % 2,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
