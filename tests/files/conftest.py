"""A saved folder of each kind, for tests that damage a copy of it."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.tokenizer import tiny_tokenizer


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folder that has a saved folder for each kind; tests copy these, and never change them."""
    root = tmp_path_factory.mktemp("folders")
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=4)
    model.save_pretrained(root / "native")
    zoo.merge(model).save_pretrained(root / "merged_embeddings")
    zoo.export(model, root / "peft")
    zoo.export(model, root / "embeddings", to="embeddings")
    zoo.export(model, root / "kv", to="kv")
    zoo.export(model, root / "vocabulary", to="vocabulary", tokenizer=tiny_tokenizer())
    model.to(torch.bfloat16).save_pretrained(root / "half")
    prefix = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=3)
    zoo.export(prefix, root / "peft_prefix")
    zoo.merge(prefix).save_pretrained(root / "merged")
    net = zoo.get_method("p_tuning")(tiny_model("llama"), num_virtual_tokens=3, reparameterization="mlp")
    net.save_pretrained(root / "net")
    return root
