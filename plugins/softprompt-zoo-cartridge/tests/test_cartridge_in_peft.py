"""Cartridges written to and read from PEFT's files."""

import json

import peft
import pytest
import torch
from cartridges import CAUSAL, DOCUMENT, attach, close, logits, method, one_thread, two, words  # noqa: F401 - fixtures of all tests
from safetensors.torch import load_file, save_file

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_peft_gives_our_logits(architecture, frozen, tmp_path):
    model, _ = attach(architecture, num_frozen_tokens=frozen, init="random")
    text, base = words(7), tiny_model(architecture)
    zoo.export(model, tmp_path, to="peft")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["num_virtual_tokens"], config["num_frozen_tokens"]) == ("CARTRIDGE", 4, frozen)
    expected, plain = logits(model, text), logits(base, text)
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path)
    assert wrapped.prompt_encoder["default"].num_frozen_tokens == frozen
    close(logits(wrapped, text, attention_mask=torch.ones_like(text)), expected)
    assert not torch.allclose(plain, expected, atol=1e-2)


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_we_give_pefts_logits(architecture, frozen, tmp_path):
    base, text = tiny_model(architecture), words(7)
    config = peft.CartridgeConfig(num_virtual_tokens=4, num_frozen_tokens=frozen, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(base, config).eval()
    expected = logits(wrapped, text, attention_mask=torch.ones_like(text))
    wrapped.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model(architecture), tmp_path, trainable=True)
    prompt = loaded.prompts["default"]
    assert (prompt.method, prompt.config.num_frozen_tokens, prompt.is_merged) == ("cartridge", frozen, False)
    close(logits(loaded, text), expected)
    close(prompt.learned.frozen, wrapped.prompt_encoder["default"].weight[:frozen])


def test_written_and_read_again_it_is_the_same(tmp_path):
    model, prompt = attach(num_frozen_tokens=2, document=DOCUMENT)
    zoo.export(model, tmp_path, to="peft")
    loaded = zoo.load(tiny_model("llama"), tmp_path)
    for name, tensor in prompt.learned.state_dict().items():
        assert torch.equal(loaded.prompts["default"].learned.state_dict()[name], tensor)


def test_merged_it_is_pefts_prefix_tuning(tmp_path):
    """The tensor is the same, with a PEFT type that older PEFT versions know."""
    model, _ = attach(document=DOCUMENT)
    text = words(7)
    zoo.export(model, tmp_path / "cartridge", to="peft")
    expected = logits(model, text)
    zoo.merge(model)
    zoo.export(model, tmp_path / "prefix", to="peft")
    assert json.loads((tmp_path / "prefix" / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"
    tensors = [
        load_file(tmp_path / n / "adapter_model.safetensors")["prompt_embeddings"] for n in ("cartridge", "prefix")
    ]
    assert torch.equal(*tensors)
    wrapped = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "prefix")
    close(logits(wrapped, text, attention_mask=torch.ones_like(text)), expected)


def test_pefts_composition_is_ours(tmp_path):
    model, text = two("llama"), words(7)
    for name in ("default", "other"):
        zoo.export(model, tmp_path / name, to="peft", name=name)
    peft.compose_cartridge_adapters([tmp_path / "default", tmp_path / "other"], output_path=tmp_path / "both")
    model.prompts.activate("default", "other")
    close(logits(zoo.load(tiny_model("llama"), tmp_path / "both"), text), logits(model, text))


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    attach(num_frozen_tokens=1)[0].save_pretrained(tmp_path)
    for name in ("softprompt_zoo.json", "model.safetensors"):
        (tmp_path / name).unlink()
    path, tensors = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    save_file(load_file(tensors), tensors)  # as PEFT writes it
    fields = json.loads(path.read_text())
    for change, error, reason in (
        ({"num_frozen_tokens": 4}, zoo.UnsupportedError, "num_frozen_tokens 4 of 4 virtual tokens"),
        ({"num_virtual_tokens": 9}, zoo.CheckpointError, "says 9 virtual tokens, but its tensor has 4"),
        ({"num_layers": 5}, zoo.BackboneMismatchError, "in 5 layers; this model needs 64 in 2"),
    ):
        path.write_text(json.dumps({**fields, **change}))
        with pytest.raises(error, match=reason):
            zoo.load(tiny_model("llama"), tmp_path)
    path.write_text(json.dumps(fields))
    with pytest.raises(zoo.BackboneMismatchError, match="this model needs 128 in 2"):
        zoo.load(tiny_model("gpt2"), tmp_path)
    with pytest.raises(zoo.UnsupportedError, match="CARTRIDGE is for causal models; this one is 'encoder'"):
        zoo.load(tiny_model("bert"), tmp_path)


def test_what_peft_cannot_reproduce_is_refused(tmp_path):
    model, _ = attach("mistral", always_visible=True)
    with pytest.raises(zoo.UnsupportedError, match="slide out of the window"):
        zoo.export(model, tmp_path / "x", to="peft")
    assert not (tmp_path / "x").exists()
