"""transformers' pipelines: they give what the prompted model gives, not what the base model gives."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    pipeline,
)

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.sizes import ROTARY

pytestmark = pytest.mark.slow
METHODS = ["prompt_tuning", "prefix_tuning"]
TEXT = "w5 w6 w7 w8"


def bert(kind):
    torch.manual_seed(0)
    model = kind(BertConfig(num_labels=3, **ROTARY))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    return model.eval()


def prompted(model, method):
    torch.manual_seed(1)
    return zoo.get_method(method)(model, num_virtual_tokens=4).eval()


def encoded(text=TEXT):
    return tiny_tokenizer()(text, return_tensors="pt")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_text_generation(method, batch_size):
    model, base = prompted(tiny_model("llama"), method), tiny_model("llama")
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    options = {"max_new_tokens": 6, "do_sample": False}

    def run(one):
        made = pipeline("text-generation", model=one, tokenizer=tokenizer, batch_size=batch_size)
        found = made([TEXT, "w9 w10"], return_tensors=True, **options)
        return [row[0]["generated_token_ids"][-6:] for row in found]

    expected = [model.generate(**encoded(text), **options)[0, -6:].tolist() for text in (TEXT, "w9 w10")]
    assert [list(row) for row in run(model)] == expected
    assert run(base) != run(model)


@pytest.mark.parametrize("method", METHODS)
def test_text_classification(method):
    kind = BertForSequenceClassification
    model = prompted(bert(kind), method)

    def run(one):
        made = pipeline("text-classification", model=one, tokenizer=tiny_tokenizer(), top_k=None)
        scores = {entry["label"]: entry["score"] for entry in made([TEXT])[0]}
        return torch.tensor([scores[f"LABEL_{index}"] for index in range(3)])

    with torch.no_grad():
        expected = model(**encoded()).logits.softmax(-1)[0]
    torch.testing.assert_close(run(model), expected)
    assert not torch.allclose(run(bert(kind)), expected, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_token_classification(method):
    kind = BertForTokenClassification
    model = prompted(bert(kind), method)

    def run(one):
        made = pipeline("token-classification", model=one, tokenizer=tiny_tokenizer(), ignore_labels=[])
        return torch.tensor([float(entry["score"]) for entry in made(TEXT)])

    with torch.no_grad():
        expected = model(**encoded()).logits.softmax(-1)[0].max(-1).values
    torch.testing.assert_close(run(model), expected)
    assert not torch.allclose(run(bert(kind)), expected, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_feature_extraction(architecture, method):
    model = prompted(tiny_model(architecture).base_model, method)

    def run(one):
        return pipeline("feature-extraction", model=one, tokenizer=tiny_tokenizer(), return_tensors=True)(TEXT)

    with torch.no_grad():
        expected = model(**encoded()).last_hidden_state
    assert expected.shape[1] == len(TEXT.split())
    torch.testing.assert_close(run(model), expected)
    assert not torch.allclose(run(tiny_model(architecture).base_model), expected, atol=1e-3)
