"""CaPT against its equation, by hand and through the frozen model."""

from types import SimpleNamespace

import pytest
import softprompt_zoo_capt as capt
import torch
from transformers import DynamicCache

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXTS = [torch.tensor([[4, 9, 30, 7, 55, 12]]), torch.tensor([[8, 3, 17]])]
TOKENS, HIDDEN, LAYERS = 2, 32, 2


def attach(architecture="llama", **options):
    torch.manual_seed(0)
    model = zoo.get_method("capt")(tiny_model(architecture), **{"num_virtual_tokens": TOKENS, **options})
    with torch.no_grad():
        learned(model).vectors.add_(0.1 * torch.randn_like(learned(model).vectors))
    return model


def learned(model):
    return model.prompts["default"].learned


# The equation


def test_the_capsule_by_hand():
    """The mean of (1, 2) and (5, 6) is (3, 4), whatever stands in the padding; a row without text adds nothing."""
    site = {"encoder": (SimpleNamespace(),) * 2}
    sizes = {"hidden_size": 2, "dtype": torch.float32, "device": "cpu", "family": "encoder", "layers": site}
    parameters = capt.Parameters(capt.Config(), SimpleNamespace(**sizes))
    with torch.no_grad():
        parameters.vectors.copy_(torch.tensor([[[10.0, 20.0]], [[-1.0, 0.0]]]))
    embeddings = torch.tensor([[[1.0, 2.0], [1e6, 1e6], [5.0, 6.0]]]).repeat(2, 1, 1)
    text = SimpleNamespace(embeddings=embeddings, mask=torch.tensor([[True, False, True], [False] * 3]))
    capsules = parameters(text)
    assert capsules[0].tolist() == [[[13.0, 24.0]], [[10.0, 20.0]]]
    assert capsules[1].tolist() == [[[2.0, 4.0]], [[-1.0, 0.0]]]


def capsules_by_hand(vectors, base, text):
    return vectors + base.get_input_embeddings()(text)[0].mean(dim=0)


@torch.no_grad()
def test_keys_and_values_are_the_layers_own_projections():
    """Against llama's own layers, after a cache that holds what they make of the capsules."""
    model, base = attach(), tiny_model("llama")
    for text in TEXTS:
        cache = DynamicCache()
        for index, capsule in enumerate(capsules_by_hand(learned(model).vectors, base, text)):
            attention = base.model.layers[index].self_attn
            made = [
                layer(capsule).view(1, TOKENS, 2, 8).transpose(1, 2) for layer in (attention.k_proj, attention.v_proj)
            ]
            cache.update(*made, index)
        expected = base(text, past_key_values=cache).logits
        found = model(text).logits
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(found, base(text).logits, atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
@torch.no_grad()
def test_a_shallow_capsule_stands_in_front_of_the_text(architecture):
    """Against the base model on embeddings."""
    model, base = attach(architecture, deep=False), tiny_model(architecture)
    decoder = {"decoder_input_ids": TEXTS[1]} if architecture == "t5" else {}
    for text in TEXTS:
        capsule = capsules_by_hand(learned(model).vectors[0], base, text)
        embeddings = torch.cat([capsule[None], base.get_input_embeddings()(text)], dim=1)
        expected = base(inputs_embeds=embeddings, **decoder).logits
        found = model(input_ids=text, **decoder).logits
        assert torch.allclose(found, expected if decoder else expected[:, TOKENS:], atol=1e-4)


@pytest.mark.parametrize("deep", [True, False])
def test_the_number_of_trained_numbers(deep):
    count = attach(deep=deep, num_virtual_tokens=1).prompts["default"].num_parameters
    assert count == (LAYERS if deep else 1) * HIDDEN


# The start


def test_it_starts_from_words():
    torch.manual_seed(0)
    model = zoo.get_method("capt")(tiny_model("gpt2"))
    table = model.get_input_embeddings().weight
    first, second = learned(model).vectors
    assert torch.equal(first, second)
    assert (table == first).all(dim=1).any()


def test_it_starts_from_another_prompt():
    plain = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS).prompts["default"]
    model = zoo.get_method("capt")(tiny_model("llama"), num_virtual_tokens=TOKENS, init=plain)
    for vectors in learned(model).vectors:
        assert torch.equal(vectors, plain.learned.embeddings)
    prefix = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS).prompts["default"]
    with pytest.raises(zoo.UnsupportedError, match="capt cannot start from keys and values"):
        zoo.get_method("capt")(tiny_model("llama"), num_virtual_tokens=TOKENS, init=prefix)


# What is refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"deep": 2}, "deep is 2; expected one of False, True"),
        ({"init": "words"}, "init is 'words'; expected one of 'sampled', 'random'"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
    ],
)
def test_bad_options_change_nothing(options, reason):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=reason):
        zoo.get_method("capt")(model, **options)
    assert not hasattr(model, "prompts")
    assert all(parameter.requires_grad for parameter in model.parameters())
