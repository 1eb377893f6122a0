"""Tiny models with a LoRA and prompts."""

import json

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft

import softprompt_zoo as zoo
from softprompt_zoo.files.reading import read_tensors
from softprompt_zoo.files.writing import write_tensors
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import random_text

needs_accepted_peft(allow_module_level=True)
TEXT = random_text(9, 1)
TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"], "t5": ["q", "v"]}


def lora(architecture="llama", way="wrapped"):
    """Return a tiny model with a LoRA that has an effect: wrapped in a PeftModel, or injected into the model."""
    torch.manual_seed(0)
    model = tiny_model(architecture)
    config = peft.LoraConfig(r=2, target_modules=TARGETS[architecture], init_lora_weights=False)
    if way == "wrapped":
        return peft.get_peft_model(model, config)
    model.add_adapter(config)
    return model


def inside(model):
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def prompted(method="prompt_tuning", architecture="llama", way="wrapped"):
    model = lora(architecture, way).eval()
    found = zoo.get_method(method)(model, num_virtual_tokens=4)
    assert found is model
    with torch.no_grad():
        for parameter in inside(model).prompts.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def run(model, **more):
    if inside(model).config.is_encoder_decoder:
        more["decoder_input_ids"] = TEXT[:, :4]
    with torch.no_grad():
        return model(input_ids=TEXT, **more).logits


def adapted(model):
    return {n: p for n, p in inside(model).named_parameters() if "lora_" in n}


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        ids = random_text(9, 50 + step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


WAYS = pytest.mark.parametrize("way", ["wrapped", "injected"])


def change_config(folder, **fields):
    """Change the config of the adapter `default` in a saved folder."""
    tensors, metadata = read_tensors(folder / "model.safetensors")
    described = json.loads(metadata["softprompt_zoo_adapters"])
    described["default"]["config"] |= fields
    metadata["softprompt_zoo_adapters"] = json.dumps(described)
    write_tensors(folder / "model.safetensors", {key: tensor.clone() for key, tensor in tensors.items()}, metadata)
