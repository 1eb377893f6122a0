"""Tiny models with a cartridge, and the method by its name, installed or not."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import TINY_MODELS, tiny_model, tiny_tokenizer

if importlib.util.find_spec("softprompt_zoo_cartridge") is None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
import softprompt_zoo_cartridge as cartridge

CAUSAL = ["gpt2", "llama", "qwen3", "gemma3", "mistral", "gpt_neox"]
OTHERS = [name for name in TINY_MODELS if name not in CAUSAL]
VOCABULARY = 101
DOCUMENT = [int(i) for i in torch.randint(5, VOCABULARY, (12,), generator=torch.Generator().manual_seed(0))]
CHAT = (
    "{% for m in messages %}{{ {'system': ' w91 ', 'user': ' w92 ', 'assistant': ' w93 '}[m.role] }}"
    "{{ m.content + ' w99 ' }}{% endfor %}{% if add_generation_prompt %}{{ ' w93 ' }}{% endif %}"
)
"""A chat template of words: a role's word before a message, `w99` after it."""


@contextlib.contextmanager
def available():
    """Make the method available by its name: installed, or registered by hand while these tests run."""
    by_hand = "cartridge" not in zoo.list_methods()
    if by_hand:
        zoo.register(cartridge, "cartridge")
    try:
        yield
    finally:
        if by_hand:
            zoo.unregister("cartridge")


@pytest.fixture(scope="module", autouse=True)
def method():
    with available():
        yield


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def attach(architecture="llama", **options):
    model = zoo.get_method("cartridge")(tiny_model(architecture), **{"num_virtual_tokens": 4, **options})
    return model, model.prompts["default"]


def words(length, seed=1, rows=1):
    return torch.randint(5, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids, **options):
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def two(architecture):
    """Return a model with two cartridges of 4 and 6 tokens, of different documents."""
    model, _ = attach(architecture, document=DOCUMENT)
    model.prompts.add("other", "cartridge", num_virtual_tokens=6, document=words(9, 5)[0])
    return model
