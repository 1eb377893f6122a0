"""Starting a cartridge by attention matching, in models."""

import pytest
import torch
from cartridges import VOCABULARY, attach, cartridge, close, logits, method, one_thread, words  # noqa: F401 - fixtures

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

LONG = torch.randint(5, VOCABULARY, (24,), generator=torch.Generator().manual_seed(3))
MATCHED = ["llama", "qwen3", "gpt_neox"]


def behind(architecture, document, text):
    """Return the base model's logits of a text after the whole document."""
    ids = torch.cat([document[None].expand(len(text), -1), text], dim=1)
    return logits(tiny_model(architecture), ids)[:, len(document) :]


def distance(model, architecture, text):
    return float((logits(model, text) - behind(architecture, LONG, text)).square().mean())


@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize("architecture", MATCHED)
def test_it_comes_nearer_to_the_document_than_its_first_tokens(architecture, scores):
    model, prompt = attach(architecture, num_virtual_tokens=16, document=LONG, scores=scores)
    text = words(6, seed=7, rows=8)
    before = distance(model, architecture, text)
    cartridge.match_attention(model, texts=list(words(12, seed=8, rows=12)))
    assert distance(model, architecture, text) < 0.7 * before
    assert prompt.learned.scores is None or prompt.learned.scores.any()


@pytest.mark.parametrize("architecture", MATCHED)
def test_all_but_one_token_are_nearly_the_document(architecture):
    """If hardly anything is left out, hardly anything changes, including positions."""
    model, _ = attach(architecture, num_virtual_tokens=23, document=LONG, scores=True)
    cartridge.match_attention(model)
    text = words(6, seed=7)
    assert distance(model, architecture, text) < 0.05 * float(behind(architecture, LONG, text).var())


def test_the_model_is_left_as_it_was():
    model, prompt = attach(num_virtual_tokens=8, document=LONG)
    model.prompts.add("other", "prompt_tuning", num_virtual_tokens=2)
    model.prompts.activate("other")
    model.train()
    expected = logits(model.eval(), words(5))
    model.train()
    cartridge.match_attention(model, name="default")
    assert model.training
    assert model.prompts.active == ("other",)
    assert list(model.prompts) == ["default", "other"]
    assert "cartridge_reader" not in zoo.list_methods()
    assert torch.equal(logits(model.eval(), words(5)), expected)
    assert prompt.learned.trained.requires_grad


def test_frozen_tokens_are_the_documents_first():
    """On gpt2, which has no rotation to another position, they do not change."""
    model, prompt = attach("gpt2", num_virtual_tokens=8, num_frozen_tokens=2, document=LONG)
    before = prompt.learned.frozen.clone()
    cartridge.match_attention(model)
    close(prompt.learned.frozen, before)


def test_it_can_be_trained_on():
    model, prompt = attach(num_virtual_tokens=8, document=LONG, scores=True)
    cartridge.match_attention(model)
    model.train()(input_ids=words(5), labels=words(5)).loss.backward()
    assert prompt.learned.trained.grad.abs().max() > 0


def test_texts_without_tokens_are_refused():
    model, _ = attach(num_virtual_tokens=8, document=LONG)
    with pytest.raises(ValueError, match="texts has no tokens; give token ids of at least one"):
        cartridge.match_attention(model, texts=[])


@pytest.mark.parametrize(
    ("architecture", "options", "error", "message"),
    [
        ("llama", {"num_virtual_tokens": 24}, ValueError, "the cartridge has 24 tokens and its document 24"),
        ("llama", {"document": None}, zoo.UnsupportedError, "is to match one but has no document"),
        ("mistral", {}, zoo.UnsupportedError, "this model has a sliding window"),
    ],
)
def test_what_cannot_be_matched_is_told_and_nothing_is_changed(architecture, options, error, message):
    model, prompt = attach(architecture, **{"num_virtual_tokens": 8, "document": LONG, **options})
    before = prompt.learned.trained.detach().clone()
    with pytest.raises(error, match=message):
        cartridge.match_attention(model)
    assert torch.equal(prompt.learned.trained, before)
    assert list(model.prompts) == ["default"]
    assert "cartridge_reader" not in zoo.list_methods()
