"""A base model quantized by torchao: prompts train on it, and the promises hold against the quantized base model."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import LENGTHS, Subject, random_text

quantization = pytest.importorskip("torchao.quantization")
pytestmark = pytest.mark.slow
TEXTS = [random_text(length, seed) for seed, length in enumerate(LENGTHS)]


def quantized():
    model = tiny_model("llama")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_quantized_base(method):
    base = Subject("llama", quantized())
    assert not torch.allclose(base.logits(TEXTS[0]), Subject("llama", tiny_model("llama")).logits(TEXTS[0]), atol=1e-4)
    torch.manual_seed(0)
    subject = Subject("llama", zoo.get_method(method)(quantized(), num_virtual_tokens=4))
    alone = [subject.logits(text)[0] for text in TEXTS]
    assert not torch.allclose(alone[0], base.logits(TEXTS[0])[0], atol=1e-3)
    for row, expected in zip(subject.text_logits(TEXTS, "left"), alone, strict=True):
        assert_equal(row, expected, "a padded row")
    before = subject.state(of_prompt=True)
    subject.train(3)
    assert all(not torch.equal(value, before[name]) for name, value in subject.state(of_prompt=True).items())
    subject.detach()
    assert torch.equal(subject.logits(TEXTS[0]), base.logits(TEXTS[0]))
