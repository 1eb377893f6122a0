"""The card of saved prompts: what it says, that the hub accepts it, and that a user's own card stays."""

import re

import pytest
import torch
from helpers import loopback_hub
from helpers.prompted import prompted
from huggingface_hub import ModelCard
from transformers import LlamaForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.embedded import cache_folder
from softprompt_zoo.files.card import card_file
from softprompt_zoo.testing import tiny_model

IDS = torch.randint(3, 101, (2, 7), generator=torch.Generator().manual_seed(0))
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2 = str(cache_folder() / "smollm2-0.1.2")


def named(model, base):
    model.prompts.base_name = base
    return model


@pytest.fixture
def model():
    return named(prompted().model.eval(), BASE)


@pytest.mark.parametrize("base", [BASE, SMOLLM2, "/home/alice/secret-model", None])
def test_a_card_is_valid_for_the_hub_and_names_no_folder(model, base, tmp_path, monkeypatch):
    named(model, base).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    with loopback_hub.serve(monkeypatch, tmp_path / "cache"):
        card.validate()
    fields = card.data.to_dict()
    assert fields.get("base_model") == (BASE if base in (BASE, SMOLLM2) else None)
    assert fields["library_name"] == "softprompt-zoo"
    assert fields["pipeline_tag"] == "text-generation"
    assert fields["tags"] == ["soft-prompt", "prefix-tuning", "peft"]
    assert "license" not in fields
    assert "alice" not in str(card)
    assert str(cache_folder()) not in str(card)


@pytest.mark.parametrize("code", [0, 1])
def test_the_code_on_a_card_loads_the_prompt(model, code, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda name: tiny_model("llama"))
    text = (tmp_path / "saved" / "README.md").read_text().replace(card_file.PLACE, str(tmp_path / "saved"))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    found = {}
    exec(blocks[code], found)
    loaded = found["model"].eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_card_says_why_peft_cannot_load_it(tmp_path):
    model = zoo.get_method("prefix")(tiny_model("llama"), num_virtual_tokens=3, wrappers={})
    model.prompts.set_weight("default", 2.0)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert not (tmp_path / "adapter_config.json").exists()
    assert re.search("PEFT cannot load it: prompt 'default' .*weight 2", text)
    assert "peft" not in ModelCard(text).data.tags
    model.prompts.add("second", "prompt", num_virtual_tokens=2)
    model.prompts.activate("default", "second")
    model.save_pretrained(tmp_path)
    assert (
        "PEFT cannot load it: a PEFT adapter holds one prompt, and the active ones are: default, second"
        in (tmp_path / "README.md").read_text()
    )


def test_a_users_card_stays(model, tmp_path):
    path = tmp_path / "README.md"
    model.save_pretrained(tmp_path)
    first = path.read_text()
    model.prompts.add("second", "prompt", num_virtual_tokens=2)
    model.save_pretrained(tmp_path)
    assert "| second |" in path.read_text()
    for own in (
        first.replace("---\n", "---\nlicense: mit\n", 1).encode(),
        b"mine",
        b"",
        b"\xff\xfe",
        first[:-30].encode(),
    ):
        path.write_bytes(own)
        model.save_pretrained(tmp_path)
        assert path.read_bytes() == own
        card_file.remove(tmp_path)
        assert path.exists()
    path.unlink()
    path.mkdir()
    model.save_pretrained(tmp_path)
    assert path.is_dir()
    path.rmdir()
    path.symlink_to(tmp_path / "elsewhere.md")
    model.save_pretrained(tmp_path)
    assert path.is_symlink()
    assert not (tmp_path / "elsewhere.md").exists()


def test_texts_of_options_do_not_break_a_card(tmp_path):
    model = zoo.get_method("prefix")(tiny_model("llama"), "a-b", num_virtual_tokens=3)
    model.prompts["a-b"].config.settle(init_text="---\n# heading\n" + "long " * 100)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert [line for line in card.text.splitlines() if line.startswith("#")] == [
        f"# A soft prompt for {model.prompts.architecture}",
        "## Prompts",
        "## Use",
    ]
    assert max(map(len, card.text.splitlines())) < 300
