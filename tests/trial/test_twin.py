"""Examining a model while other threads run it: their answers are what the base model gives for real words."""

import functools
import threading

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text
from softprompt_zoo.trial import projections, twin
from softprompt_zoo.trial.twin import twins

WORDS, TEXT = random_text(4, 1), random_text(7, 2)


def inspect(model):
    zoo.inspect(model, inputs={"input_ids": TEXT})


def truncate(model):
    zoo.truncate(model.prompts["default"], 2, by="attention", inputs={"input_ids": TEXT}, model=model)


def project(model):
    """Project states as if for the first time, such as after the model was moved or copied."""
    model.prompts.backbone.project._calls.clear()
    layers = next(iter(model.prompts.backbone.layers.values()))
    model.prompts.backbone.project(next(iter(model.prompts.backbone.layers)), [torch.zeros(2, 32)] * len(layers))


def layers_of(model):
    return next(module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList))


def answer(model):
    with torch.no_grad():
        return model(input_ids=TEXT).logits


def check_a_thread_is_left_alone(look, architecture):
    """Examine the model while another thread is in the middle of a forward, and let that forward end meanwhile."""
    model = zoo.get_method("prompt_tuning")(tiny_model(architecture), num_virtual_tokens=4)
    with torch.no_grad():
        model.prompts["default"].learned.embeddings.copy_(model.prompts.backbone.embed(WORDS[0]))
        expected = tiny_model(architecture)(input_ids=torch.cat([WORDS, TEXT], dim=1)).logits[:, 4:]
    inside, looking, answered = threading.Event(), threading.Event(), threading.Event()
    answers = []

    def pause(module, args):
        """Stand in for the operating system, which may switch threads here."""
        if threading.current_thread() is server and not inside.is_set():
            inside.set()
            looking.wait(10)
        elif threading.current_thread() is not server and not looking.is_set():
            looking.set()
            answered.wait(10)

    def serve():
        try:
            answers.append(answer(model))
        except Exception as error:
            answers.append(error)
        answered.set()

    server = threading.Thread(target=serve)
    handle = layers_of(model)[0].register_forward_pre_hook(pause)
    server.start()
    inside.wait(10)
    look(model)
    server.join()
    handle.remove()
    assert isinstance(answers[0], torch.Tensor), answers[0]
    assert_equal(answers[0], expected, "an answer while the model is looked at")
    assert_equal(answer(model), expected, "an answer after that")


CASES = [
    *((inspect, architecture) for architecture in ("llama", "gpt2", "bert", "nemotron", "falcon", "deberta_v2")),
    (truncate, "llama"),
    (project, "llama"),
    (project, "gpt2"),
]


@pytest.mark.parametrize(("look", "architecture"), CASES)
def test_looking_leaves_other_threads_alone(look, architecture):
    check_a_thread_is_left_alone(look, architecture)


def with_the_models_configs(root, attentions):
    """Undo what is tested: let the twins read and write the configs that all threads read."""
    made = twins(root, attentions)
    for module in root.modules():
        if "config" in module.__dict__:
            made[id(module)].__dict__["config"] = module.config
    return made


@pytest.mark.parametrize("look", [inspect, truncate, project])
def test_the_check_notices_a_switch_of_the_models_configs(look, monkeypatch):
    monkeypatch.setattr(twin, "twins", with_the_models_configs)
    monkeypatch.setattr(projections, "twins", with_the_models_configs)
    with pytest.raises(AssertionError):
        check_a_thread_is_left_alone(look, "llama")


def test_nothing_of_the_model_is_touched_while_it_is_measured():
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=4).train()
    seen = []

    def look(module, args, output):
        seen.append((model.training, model.model.training, model.config._attn_implementation))
        seen.append(tuple(parameter.requires_grad for parameter in model.prompts.parameters()))

    model.model.layers[1].register_forward_hook(look)
    zoo.inspect(model, inputs={"input_ids": TEXT})
    assert set(seen) == {(True, True, "softprompt_zoo_sdpa"), (True,)}


def hook_as_accelerate_does(model):
    for module in (model.model.layers[0].self_attn, model.model.layers[1]):
        module._old_forward = module.forward
        module.forward = functools.partial(lambda owner, *args, **kwargs: owner._old_forward(*args, **kwargs), module)


def compile_the_model(model):
    model.forward = torch.compile(model.forward, backend="eager")


def compile_a_layer(model):
    model.model.layers[0].forward = torch.compile(model.model.layers[0].forward, backend="eager")


def patch_what_is_no_attention(model):
    mlp = model.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda states: forward(states)


@pytest.mark.parametrize(
    "replace", [hook_as_accelerate_does, compile_the_model, compile_a_layer, patch_what_is_no_attention]
)
def test_a_forward_that_was_replaced_is_measured_too(replace):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=4)
    text = {"input_ids": TEXT}
    expected = zoo.inspect(model, inputs=text)["default"].attention.shares["decoder"]
    replace(model)
    found = zoo.inspect(model, inputs=text)["default"].attention.shares["decoder"]
    assert torch.equal(found, expected)


def test_a_forward_that_keeps_its_layer_is_refused():
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=4)
    layer = model.model.layers[0]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    expected = answer(model)
    with pytest.raises(zoo.UnsupportedError, match=r"the forward of LlamaDecoderLayer was replaced by .*<lambda>"):
        inspect(model)
    assert torch.equal(answer(model), expected)
    del layer.forward
    inspect(model)


def test_another_attention_beside_a_forward_leaves_nothing_wrong_behind():
    """That forward itself may be wrong, as the page on limits says; the next one is right, and so is decoding."""
    model, base = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=4), tiny_model("llama")
    with torch.no_grad():
        model.prompts["default"].learned.embeddings.copy_(model.prompts.backbone.embed(WORDS[0]))
        expected = base(input_ids=torch.cat([WORDS, TEXT], dim=1)).logits[:, 4:]
    is_first = [True]

    def switch(module, args):
        if is_first.pop() if is_first else False:
            model.set_attn_implementation("eager")

    handle = layers_of(model)[0].register_forward_pre_hook(switch)
    answer(model)
    handle.remove()
    assert model.config._attn_implementation == "softprompt_zoo_eager"
    assert_equal(answer(model), expected, "the next answer")
    with torch.no_grad():
        cache = model(input_ids=TEXT[:, :4], use_cache=True).past_key_values
        assert_equal(model(input_ids=TEXT[:, 4:], past_key_values=cache).logits, expected[:, 4:], "with a cache")
