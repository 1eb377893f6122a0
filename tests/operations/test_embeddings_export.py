"""Prompts exported as bare embeddings, for engines that accept them."""

import numpy as np
import pytest
import torch
from helpers.vocabulary_exports import MODELS, TEXT, export, prompted
from safetensors.torch import load_file

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject


@pytest.mark.parametrize("name", ["tied", "gemma3"])
def test_bare_embeddings(tmp_path, name):
    model = prompted(name)
    zoo.export(model, tmp_path / "out", to="embeddings", name=["bob", "alice"])
    bare = load_file(tmp_path / "out" / "prompt_embeds.safetensors")
    assert {key: tuple(value.shape) for key, value in bare.items()} == {"alice": (4, 32), "bob": (3, 32)}
    assert np.array_equal(np.load(tmp_path / "out" / "bob.npy"), bare["bob"].numpy())
    base = MODELS[name]()
    joined = torch.cat([bare["bob"][None], base.get_input_embeddings()(TEXT).detach()], dim=1)
    expected = Subject(name, model).logits(TEXT, prompts=["bob"])
    with torch.no_grad():
        assert_equal(base(inputs_embeds=joined).logits[:, 3:], expected, "the base model on embeddings")
    loaded = zoo.load(base, tmp_path / "out")
    assert loaded.prompts.active == ("bob", "alice")
    assert_equal(Subject(name, loaded).logits(TEXT, prompts=["bob"]), expected, "loaded back")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| `bob` | 3 | 32 |" in readme
    assert "prompt_embeds" in readme


def test_encoders_write_embeddings_only(tmp_path):
    model = zoo.get_method("prompt_tuning")(tiny_model("bert"), num_virtual_tokens=4)
    zoo.export(model, tmp_path / "bare", to="embeddings")
    assert_equal(
        Subject("bert", zoo.load(tiny_model("bert"), tmp_path / "bare")).logits(TEXT),
        Subject("bert", model).logits(TEXT),
        "loaded back",
    )
    with pytest.raises(zoo.UnsupportedError, match="BertForMaskedLM is not a causal model"):
        export(model, tmp_path / "out")


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    zoo.export(prompted(), tmp_path / "link", to="embeddings")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "alice.npy").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]
