"""Truncation keeps the tokens it is asked for; similarity finds the nearest prompt."""

import math

import pytest
import torch
from helpers.several_prompts import assert_numbers, batch, everywhere, plain, prompted, tensors
from torch.nn import functional

import softprompt_zoo as zoo
from softprompt_zoo.testing.subject import random_text
from softprompt_zoo.tokens.kinds import PlainTokens


@everywhere
def test_truncation_keeps_the_longest_tokens_in_order(architecture, method):
    model = prompted(architecture, method)
    expected = tensors(model.prompts["a"], model)
    scale = torch.tensor([1.0, 50.0, 2.0, 100.0])[:, None]
    grown = {name: part * scale for name, part in expected.items()}
    model.prompts["a"].learned = PlainTokens(grown)
    shorter = zoo.truncate(model.prompts["a"], 2)
    assert_numbers(shorter, {name: part[[1, 3]] for name, part in grown.items()}, model)
    same = zoo.truncate(model.prompts["a"], 4)
    assert_numbers(same, grown, model)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_truncation_keeps_the_weight(method):
    model = prompted("llama", method).eval()
    text = random_text(9, 1)
    model.prompts.set_weight("a", 0.25)
    model.prompts.add("same", zoo.truncate(model.prompts["a"], 4))
    assert torch.equal(model(text, prompts="same").logits, model(text, prompts="a").logits)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_truncation_keeps_the_tokens_that_carry_the_attention(architecture):
    """The order is that of `inspect`, whose numbers test_inspection.py checks against the base model's."""
    model = prompted(architecture, "prefix_tuning", (5, 1, 1))
    states = model.prompts["a"].merged_tokens(model.prompts.backbone)
    text = batch(model)
    shares = zoo.inspect(model, "a", inputs=text)["a"].attention.tokens
    order = torch.cat(list(shares.values())).mean(dim=0).argsort(descending=True)[:2].sort().values
    shorter = zoo.truncate(model.prompts["a"], 2, inputs=text, model=model)
    flat = {site: zoo.flatten_layers(of_site) for site, of_site in states.sites.items()}
    assert_numbers(shorter, {site: part[order] for site, part in flat.items()}, model)


def test_truncation_keeps_planted_tokens():
    """Two tokens have large keys, with the sign that gets more of the attention; the others' keys are zero."""
    model = prompted("llama", "prefix_tuning", (5, 1, 1))
    text = batch(model, "right")
    site = model.prompts["a"].merged_tokens(model.prompts.backbone).sites["decoder"]
    best, best_share = None, 0.0
    for sign in (1, -1):
        keys = [torch.zeros_like(layer) for layer in site.keys]
        for layer in keys:
            layer[:, [1, 4]] = sign * 20.0
        model.prompts["a"].learned = PlainTokens(
            {"decoder": zoo.flatten_layers(zoo.SiteTokens(tuple(keys), site.values))}
        )
        with torch.no_grad():
            model.set_attn_implementation("eager")
            weights = model(**text, prompts=["a"] * 3, output_attentions=True).attentions
        share = float(1 - torch.stack(weights).sum(-1).mean())
        if share > best_share:
            best, best_share = model.prompts["a"].learned, share
    model.prompts["a"].learned = best
    expected = tensors(model.prompts["a"], model)["decoder"][[1, 4]]
    assert_numbers(zoo.truncate(model.prompts["a"], 2, inputs=text, model=model), {"decoder": expected}, model)


def test_truncation_refuses(llama_adapter):
    model = prompted("llama", "prompt_tuning")
    a = model.prompts["a"]
    text = batch(model)
    for arguments, error, message in [
        ({"num_virtual_tokens": 0}, ValueError, "at least 1"),
        ({"num_virtual_tokens": 5}, ValueError, "num_virtual_tokens is 5, but the prompt has 4 tokens"),
        ({"by": "luck"}, ValueError, "by is 'luck'"),
        ({"by": "attention"}, ValueError, "by='attention' needs inputs"),
        ({"by": "norm", "inputs": text}, ValueError, "by='norm' takes no inputs"),
        ({"inputs": text}, ValueError, "model=…"),
        ({"inputs": text, "model": prompted("llama", "prompt_tuning")}, ValueError, "not one of the model's prompts"),
    ]:
        with pytest.raises(error, match=message):
            zoo.truncate(a, **{"num_virtual_tokens": 2, **arguments})
    gated = prompted("llama", "llama_adapter")
    with pytest.raises(zoo.UnsupportedError, match="it is gated"):
        zoo.truncate(gated.prompts["a"], 2, inputs=text, model=gated)
    assert zoo.truncate(gated.prompts["a"], 2).num_virtual_tokens == 2


def test_similarity_is_the_papers():
    model = prompted("llama", "prompt_tuning", (2, 3, 1))
    a = plain(model, "a", [(1.0, 0.0), (0.0, 3.0)])
    b = plain(model, "b", [(1.0, 1.0), (2.0, 0.0), (0.0, -1.0)])
    half = 1 / math.sqrt(2)
    assert zoo.similarity(a, b, "tokens") == pytest.approx((half + 1 + 0 + half + 0 - 1) / 6, abs=1e-6)
    assert zoo.similarity(a, b) == pytest.approx(
        float(functional.cosine_similarity(torch.tensor([0.5, 1.5]), torch.tensor([1.0, 0.0]), dim=0)), abs=1e-6
    )
    assert zoo.similarity(a, a) == pytest.approx(1, abs=1e-6)
    for seed in range(20):  # rounding must not push it above 1
        rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(seed)).tolist()
        one = plain(model, "a", rows)
        assert 0.999 < zoo.similarity(one, one) <= 1
    with pytest.raises(ValueError, match="how is 'max'"):
        zoo.similarity(a, b, "max")


@everywhere
def test_the_nearest_prompt_comes_first(architecture, method, tmp_path):
    model = prompted(architecture, method)
    near = zoo.blend([model.prompts["a"], model.prompts["b"]], [0.95, 0.05])
    model.prompts.add("near", near)
    ranked = zoo.most_similar(model.prompts["a"], model.prompts)
    assert ranked[0][0] == "near"
    assert sorted(name for name, _ in ranked) == ["b", "c", "near"]
    assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)
    with pytest.raises(ValueError, match="no prompt but the given one"):
        zoo.most_similar(near, {"self": near})
    with pytest.raises(TypeError, match="give prompts by name"):
        zoo.most_similar(near, [near])
    model.prompts.activate("near")
    model.save_pretrained(tmp_path / "one")
    with pytest.raises(zoo.CheckpointError, match="is not a folder"):
        zoo.most_similar(near, [tmp_path / "two"])
    with pytest.raises(ValueError, match="no prompt but the given one"):
        zoo.most_similar(str(tmp_path / "one"), [tmp_path / "one"], model=model)
