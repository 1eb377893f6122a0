"""A cartridge whose tokens have scores: what they do, where they are kept, and what cannot hold them."""

import math

import pytest
import torch
from cartridges import DOCUMENT, attach, available, close, logits, method, one_thread, words  # noqa: F401 - fixtures

import softprompt_zoo as zoo
from softprompt_zoo.testing import conformance_suite, tiny_model

with available():
    TestScores = conformance_suite("cartridge", {"document": DOCUMENT, "scores": True}, ["llama"])


def disturb(prompt):
    with torch.no_grad():
        prompt.learned.scores.copy_(
            torch.randn(prompt.learned.scores.shape, generator=torch.Generator().manual_seed(2))
        )


def test_they_start_at_zero_and_are_trained():
    model, prompt = attach(document=DOCUMENT, scores=True)
    bare, plain = attach(document=DOCUMENT)
    close(logits(model, words(5)), logits(bare, words(5)))
    heads = sum(layer.kv_heads for layer in model.prompts.backbone.layers["decoder"])
    assert prompt.learned.scores.shape == (heads, 4)
    assert prompt.num_parameters == plain.num_parameters + 4 * heads
    model.train()(input_ids=words(5), labels=words(5)).loss.backward()
    assert prompt.learned.scores.grad.abs().max() > 0


def test_of_all_tokens_alike_they_are_the_prompts_weight():
    """A score of log 2 doubles a token's share, as a weight of 2 does for all tokens."""
    model, prompt = attach(scores=True)
    with torch.no_grad():
        prompt.learned.scores.fill_(math.log(2))
    expected = logits(model, words(5))
    with torch.no_grad():
        prompt.learned.scores.zero_()
    assert not torch.allclose(logits(model, words(5)), expected, atol=1e-3)
    model.prompts.set_weight("default", 2.0)
    close(logits(model, words(5)), expected)


def test_they_are_saved_and_taken_over_as_a_start(tmp_path):
    model, prompt = attach(scores=True)
    disturb(prompt)
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("llama"), tmp_path)
    assert torch.equal(logits(loaded, words(5)), logits(model, words(5)))
    started, again = attach(scores=True, init=prompt)
    assert torch.equal(again.learned.scores, prompt.learned.scores)
    close(logits(started, words(5)), logits(model, words(5)))
    with pytest.raises(zoo.UnsupportedError, match="init has scores, which would be lost; choose scores=True"):
        attach(init=prompt)


def test_peft_has_no_place_for_them(tmp_path):
    model, _ = attach(scores=True)
    with pytest.raises(zoo.UnsupportedError, match="PEFT's CARTRIDGE has no place for scores"):
        zoo.export(model, tmp_path / "peft", to="peft")
    assert not (tmp_path / "peft").exists()
