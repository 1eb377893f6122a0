"""Names of attention functions that other code writes to a prompted model's config, or reads from it."""

import pytest
import torch
from helpers.products import in_turns
from transformers import AutoConfig

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text

TEXT = random_text(6, 1)


def check_written_name(architecture, name):
    """Check a name that is written as transformers' visualizer and Whisper do."""
    subject = Subject.prompted(architecture, "prefix_tuning", {"num_virtual_tokens": 3})
    expected = subject.logits(TEXT)
    subject.model.config._attn_implementation = name
    assert_equal(subject.logits(TEXT), expected, f"logits after {name} was written")
    zoo.detach(subject.model)
    assert subject.model.config._attn_implementation == name
    assert torch.allclose(subject.logits(TEXT), Subject(architecture, tiny_model(architecture)).logits(TEXT), atol=1e-5)


@in_turns(architecture=["llama", "bert", "t5", "whisper"], name=["eager", "sdpa"])
def test_a_name_that_is_written_is_followed(architecture, name):
    check_written_name(architecture, name)


@pytest.mark.parametrize("architecture", ["llama", "bert", "whisper"])  # T5's stacks have their own configs
def test_the_check_notices_prompts_that_are_ignored(architecture, monkeypatch):
    monkeypatch.setattr(
        "softprompt_zoo.sites.reach.attention_in_config.AttentionInConfig.follow_attention", lambda *args: None
    )
    with pytest.raises(AssertionError):
        check_written_name(architecture, "eager")


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5", "whisper"])
def test_a_saved_config_does_not_know_of_prompts(architecture, tmp_path):
    model = tiny_model(architecture)
    before = model.config.to_json_string()
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=3)
    model.config.save_pretrained(tmp_path)
    assert model.config.to_json_string() == before
    assert "softprompt" not in (tmp_path / "config.json").read_text()
    again = type(zoo.detach(model))(AutoConfig.from_pretrained(tmp_path))
    assert not again.config._attn_implementation.startswith("softprompt")


def test_attentions_that_the_config_asks_for():
    """transformers must find the plain name when it checks the config; the prompts follow."""
    subject = Subject.prompted("llama", "prefix_tuning", {"num_virtual_tokens": 3})
    expected = subject.logits(TEXT)
    subject.model.config._attn_implementation = "eager"
    subject.model.config.output_attentions = True
    output = subject.model(input_ids=TEXT)
    assert_equal(output.logits, expected, "logits")
    assert [layer.shape[-1] for layer in output.attentions] == [TEXT.shape[1]] * len(output.attentions)
    assert all((layer.sum(dim=-1) < 1).all() for layer in output.attentions)
