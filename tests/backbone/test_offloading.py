"""Base models whose weights accelerate keeps elsewhere until a module runs."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import random_text

TEXT = random_text(6, 1)


def run(model):
    inputs = {"decoder_input_ids": TEXT} if model.config.is_encoder_decoder else {}
    return model(input_ids=TEXT, **inputs)[0]


def prompted(model, method):
    torch.manual_seed(1)
    zoo.get_method(method)(model, num_virtual_tokens=3)
    return model


def layers_on_disk(model, folder):
    from accelerate import dispatch_model

    places = {}
    for name, module in model.named_modules():
        if next(module.children(), None) is None and next(module.parameters(), None) is not None:
            places[name] = "disk" if ".layers." in name or ".block." in name or ".layer." in name else "cpu"
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_layers_may_be_offloaded(architecture, method, tmp_path):
    def make():
        return tiny_model(architecture) if architecture == "llama" else tiny_model(architecture).base_model

    expected = run(prompted(make(), method))
    model = layers_on_disk(make(), tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    given = run(prompted(model, method))
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)
    given.sum().backward()
    assert all(p.grad is not None for p in model.prompts.parameters() if p.requires_grad)
    zoo.detach(model)
    torch.testing.assert_close(run(model), run(make()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize(("architecture", "table"), [("llama", "model.embed_tokens"), ("t5", "shared")])
def test_an_offloaded_embedding_table_is_named(architecture, table, method):
    from accelerate import cpu_offload

    model = cpu_offload(tiny_model(architecture), execution_device=torch.device("cpu"))
    before = run(model)
    with pytest.raises(
        zoo.UnsupportedError, match=rf"embedding table of .*{table}.* is offloaded .*keep it on a device"
    ):
        prompted(model, method)
    assert not hasattr(model, "prompts")
    assert torch.equal(run(model), before)


def test_an_offloaded_head_is_named():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=128, **sizes))
    weights = dict(model.classifier.state_dict())
    hook = AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights)
    add_hook_to_module(model.classifier, hook)
    with pytest.raises(zoo.UnsupportedError, match=r"task head 'classifier' is offloaded .*train_head=False"):
        prompted(model, "p_tuning_v2")
    zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=3, train_head=False)
    assert torch.isfinite(run(model)).all()


def test_the_refusal_is_what_stops_an_offloaded_table(monkeypatch):
    monkeypatch.setattr("softprompt_zoo.trial.examination.check_embeddings", lambda model: None)
    with pytest.raises((AssertionError, NotImplementedError)):
        test_an_offloaded_embedding_table_is_named("llama", "model.embed_tokens", "prompt_tuning")
