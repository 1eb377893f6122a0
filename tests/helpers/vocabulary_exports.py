"""Tiny models with prompts, and a tokenizer, to export as a vocabulary or as bare embeddings."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.sizes import ROTARY, VOCABULARY
from softprompt_zoo.testing.subject import random_text
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

TEXT = random_text(9, 1)
SENTENCE = " ".join(f"w{token}" if token > 4 else "[mask]" for token in TEXT[0].tolist())
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


def tied_llama():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, **ROTARY))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    model.generation_config.eos_token_id = None
    return model.eval()


MODELS = {
    "tied": tied_llama,
    "llama": lambda: tiny_model("llama"),
    "gemma3": lambda: tiny_model("gemma3"),  # scales its embeddings; tied
    "gpt2": lambda: tiny_model("gpt2"),  # learned positions; tied
    "phi": lambda: tiny_model("phi"),  # a bias in the head
}


def prompted(name="tied"):
    with torch.no_grad(), torch.random.fork_rng():
        made = MODELS[name]()
        torch.manual_seed(5)
        model = zoo.get_method("prompt_tuning")(made, "alice", num_virtual_tokens=4)
        model.prompts.add("bob", "p_tuning", num_virtual_tokens=3)
        for parameter in model.prompts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokenizer(words=VOCABULARY, template=TEMPLATE, **options):
    made = tiny_tokenizer(words, **options)
    made.chat_template = template
    return made


def export(model, folder, **options):
    zoo.export(model, folder, **{"to": "vocabulary", "tokenizer": tokenizer(), **options})
    return json.loads((folder / "soft_tokens.json").read_text())


def refused(model, folder, error, text, **options):
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=text):
        export(model, folder / "made" / "out", **options)
    assert sorted(folder.rglob("*")) == before
