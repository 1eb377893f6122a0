"""Prompt tuning against Lester et al. 2021 and its reference implementation's rules."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.methods.parts.initialization import FREQUENT_VOCABULARY
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.tokenizer import tiny_tokenizer


def embeddings(architecture="llama", **options):
    model = zoo.get_method("prompt")(tiny_model(architecture), **options)
    return model.prompts["default"].learned.embeddings.detach(), model.get_input_embeddings()


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert", "t5"])
def test_sampled_rows_are_embeddings_of_distinct_words(architecture):
    rows, table = embeddings(architecture, num_virtual_tokens=40)
    words = table(torch.arange(101)).detach()
    matches = [(words == row).all(-1).nonzero()[0].item() for row in rows]
    assert len(set(matches)) == 40
    assert max(matches) < FREQUENT_VOCABULARY


def test_more_tokens_than_words_repeat_them():
    rows, _ = embeddings("t5", num_virtual_tokens=150)
    assert rows.shape == (150, 32)
    assert len(torch.unique(rows, dim=0)) == 101


def test_gemma_prompts_have_the_scale_of_the_modules_output():
    rows, table = embeddings(
        "gemma3", num_virtual_tokens=3, init="text", init_text="w5 w6 w7", tokenizer=tiny_tokenizer()
    )
    assert torch.equal(rows, table(torch.tensor([5, 6, 7])).detach())
    assert not torch.allclose(rows, table.weight[5:8].detach())


def test_text_is_repeated_or_cut_without_special_tokens():
    tokenizer = tiny_tokenizer(with_special_tokens=True)
    assert tokenizer("w5").input_ids == [1, 5, 2]
    rows, table = embeddings(num_virtual_tokens=5, init="text", init_text="w5 w6 w7", tokenizer=tokenizer)
    assert torch.equal(rows, table(torch.tensor([5, 6, 7, 5, 6])).detach())
    rows, table = embeddings(num_virtual_tokens=2, init="text", init_text="w5 w6 w7", tokenizer=tokenizer)
    assert torch.equal(rows, table(torch.tensor([5, 6])).detach())


def test_labels_are_means_of_their_tokens_and_the_rest_is_sampled():
    options = {"init": "labels", "labels": ["w5 w6", "w9"], "tokenizer": tiny_tokenizer(with_special_tokens=True)}
    rows, table = embeddings(num_virtual_tokens=4, **options)
    words = table(torch.arange(101)).detach()
    torch.testing.assert_close(rows[0], (words[5] + words[6]) / 2)
    torch.testing.assert_close(rows[1], words[9])
    assert all((words == row).all(-1).any() for row in rows[2:])


def test_random_is_uniform_in_half():
    torch.manual_seed(0)
    rows, _ = embeddings("t5", num_virtual_tokens=500, init="random")
    assert rows.abs().max() <= 0.5
    assert rows.std().item() == pytest.approx((1 / 12) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"init": "labels"}, "init='labels' needs labels"),
        ({"init": "text", "init_text": ""}, "init='text' needs init_text"),
        ({"init": "text", "init_text": " ", "tokenizer": tiny_tokenizer()}, "has no tokens"),
        ({"init": "labels", "labels": ["w5"]}, "needs tokenizer=…"),
    ],
)
def test_missing_pieces(options, text):
    with pytest.raises(ValueError, match=text):
        embeddings(num_virtual_tokens=3, **options)


def test_labels_that_are_one_text():
    with pytest.raises(TypeError, match="labels is 'yes'; expected a sequence of texts"):
        embeddings(num_virtual_tokens=3, init="labels", labels="yes", tokenizer=tiny_tokenizer())


def test_a_tokenizer_of_another_model():
    with pytest.raises(ValueError, match=r"gave the id 150 .* the model has 101 embeddings"):
        embeddings(num_virtual_tokens=3, init="text", init_text="w150", tokenizer=tiny_tokenizer(words=200))


def test_parameter_count_of_t5_base():
    """Lester et al. and PEFT count 100 tokens of T5-base as 76,800."""
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
    zoo.get_method("prompt")(model, num_virtual_tokens=100)
    assert model.prompts["default"].num_parameters == 76_800


def test_half_precision_models_get_float32_prompts():
    model = zoo.get_method("prompt")(tiny_model("llama").to(torch.bfloat16), num_virtual_tokens=3)
    assert model.prompts["default"].learned.embeddings.dtype == torch.float32
    assert model(torch.randint(3, 99, (1, 5))).logits.dtype == torch.bfloat16
