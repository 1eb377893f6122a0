"""Several texts in one row, and 4-D masks: each text gives what it gives alone, or the call is refused."""

import pytest
import torch
from helpers.products import in_turns
from helpers.prompted import prompted

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.real_tokens import make_of_real_tokens
from softprompt_zoo.testing.subject import Subject, pad, random_text

METHODS = ["prompt_tuning", "prefix_tuning"]
CAUSAL = ["gpt2", "llama", "qwen3", "gemma3", "mistral", "gpt_neox"]
COUNT = 4
TEXTS = [random_text(9, 1), random_text(4, 2), random_text(7, 3)]
PACKED = torch.cat(TEXTS, dim=1)
POSITIONS = torch.cat([torch.arange(text.shape[1]) for text in TEXTS])[None]
LENGTH = PACKED.shape[1]


def apart():
    """Return a mask, `(1, 1, length, length)`, that is causal within each text."""
    owner = torch.repeat_interleave(torch.arange(len(TEXTS)), torch.tensor([text.shape[1] for text in TEXTS]))
    return ((owner[:, None] == owner) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())[None, None]


def added(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@in_turns(architecture=CAUSAL, method=METHODS)
def test_a_packed_row_gives_what_its_texts_give(architecture, method):
    subject = prompted(architecture, method)
    alone = torch.cat([subject.logits(text) for text in TEXTS], dim=1)
    assert_equal(subject.logits(PACKED, position_ids=POSITIONS, use_cache=False), alone, "packed")
    base = Subject(architecture, tiny_model(architecture)).logits(PACKED, position_ids=POSITIONS, use_cache=False)
    assert not torch.allclose(base, alone, atol=1e-2), "the prompt has no effect"


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_a_packed_row(method):
    subject = prompted("llama", method)
    subject.model(PACKED, position_ids=POSITIONS, use_cache=False).logits.pow(2).sum().backward()
    packed = subject.gradients()
    for text in TEXTS:
        subject.model(text).logits.pow(2).sum().backward()
    alone = subject.gradients()
    assert packed.keys() == alone.keys()
    for name, gradient in alone.items():
        assert_equal(packed[name], gradient, name)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_a_packed_row(method):
    """Collators give the first token of every text the label -100."""
    subject = prompted("llama", method)
    labels = PACKED.masked_fill(POSITIONS == 0, -100)
    loss = subject.run(PACKED, position_ids=POSITIONS, use_cache=False, labels=labels).loss
    total = torch.zeros(())
    for text in TEXTS:
        own = text.clone()
        own[:, 0] = -100
        total = total + subject.run(text, labels=own).loss * (text.shape[1] - 1)
    assert_equal(loss, total / (LENGTH - len(TEXTS)), "loss")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "a cache"),
        ({"attention_mask": torch.ones_like(PACKED)}, "an attention_mask"),
        ({"attention_mask": torch.ones_like(PACKED), "use_cache": False}, "an attention_mask"),
    ],
)
def test_what_would_mix_the_texts_is_refused(method, arguments, named):
    """The base model mixes them without a warning."""
    base = Subject("llama", tiny_model("llama"))
    alone = torch.cat([base.logits(text) for text in TEXTS], dim=1)
    assert not torch.allclose(base.logits(PACKED, position_ids=POSITIONS, **arguments), alone, atol=1e-2)
    with pytest.raises(zoo.UnsupportedError, match=f"row 0, token 9.*{named}.*use_cache=False"):
        prompted("llama", method).run(PACKED, position_ids=POSITIONS, **arguments)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["gpt_neo", "nemotron", "stablelm"])
def test_texts_that_a_prompt_in_the_cache_would_mix_are_refused(architecture, method):
    """The base model keeps the texts apart."""
    base = Subject(architecture, tiny_model(architecture))
    alone = torch.cat([base.logits(text) for text in TEXTS], dim=1)
    assert_equal(base.logits(PACKED, position_ids=POSITIONS, use_cache=False), alone, "packed")
    with pytest.raises(zoo.UnsupportedError, match=r"restart at row 0, token 9,.*give each text its own row"):
        prompted(architecture, method).logits(PACKED, position_ids=POSITIONS, use_cache=False)


@pytest.mark.parametrize("filler", [0, 1])
def test_positions_over_padding_are_no_restart(filler):
    subject = prompted("llama", "prefix_tuning")
    _, mask = pad(TEXTS, "left")
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, filler)
    for row, logits in enumerate(subject.text_logits(TEXTS, "left", position_ids=positions)):
        assert_equal(logits, subject.logits(TEXTS[row])[0], f"row {row}")


@in_turns(architecture=CAUSAL, method=METHODS, implementation=["eager", "sdpa"])
def test_a_mask_of_four_dimensions_keeps_texts_apart(architecture, method, implementation):
    """Boolean masks and masks added to scores, with or without a cache; the texts fit into the window they replace."""
    subject = prompted(architecture, method, implementation)
    texts = [text[:, : 6 - COUNT] for text in TEXTS] if architecture in ("gemma3", "mistral") else TEXTS
    packed = torch.cat(texts, dim=1)
    positions = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
    alone = torch.cat([subject.logits(text) for text in texts], dim=1)
    owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([text.shape[1] for text in texts]))
    mask = ((owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril())[None, None]
    for given in (mask, added(mask)):
        for use_cache in (True, False):
            found = subject.logits(packed, given, position_ids=positions, use_cache=use_cache)
            assert_equal(found, alone, f"{given.dtype}, cache {use_cache}")


@in_turns(architecture=["gpt2", "llama", "gpt_neox"], method=METHODS)
def test_a_mask_of_four_dimensions_against_real_tokens(architecture, method):
    """Without `position_ids`: the oracle is the base model, given the mask with the prompt's columns in front."""
    subject, base = prompted(architecture, method), Subject(architecture, tiny_model(architecture))
    tokens = make_of_real_tokens(subject, base, PACKED)
    whole = torch.ones(1, 1, COUNT + LENGTH, COUNT + LENGTH, dtype=torch.bool).tril()
    whole[..., COUNT:, COUNT:] = apart()
    expected = base.logits(torch.cat([tokens.ids, PACKED], dim=1), added(whole))[:, COUNT:]
    assert_equal(subject.logits(PACKED, apart()), expected, "booleans")
    assert_equal(subject.logits(PACKED, added(apart())), expected, "added")


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_under_padding_in_a_mask_of_four_dimensions(method):
    subject = prompted("llama", method)
    ids, mask = pad(TEXTS, "left")
    labels = ids.masked_fill(mask == 0, -100)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    seen = mask[:, None, None, :].bool() & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    expected = subject.run(ids, mask, labels=labels).loss
    assert_equal(subject.run(ids, seen, labels=labels, position_ids=positions).loss, expected, "loss")
