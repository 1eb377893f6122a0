"""Models in which text sees what comes after it are refused with that reason."""

import pytest
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.trial import examination

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
TEXT = {
    **SIZES,
    "model_type": "gemma",
    "vocab_size": 101,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
VISION = {**SIZES, "model_type": "siglip_vision_model", "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}


def paligemma():
    config = PaliGemmaConfig(text_config=TEXT, vision_config=VISION, image_token_index=100, projection_dim=32)
    torch.manual_seed(0)
    return PaliGemmaForConditionalGeneration(config).eval()


def says_why(method):
    model = paligemma()
    with pytest.raises(zoo.UnsupportedError, match="do not act as these words do, as text sees what comes after it"):
        zoo.get_method(method)(model)
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_paligemma_is_refused_with_the_reason(method):
    says_why(method)


def test_without_the_look_it_is_red(monkeypatch):
    monkeypatch.setattr(examination, "sees_later_tokens", lambda stack: False)
    with pytest.raises(AssertionError):
        says_why("prompt_tuning")


def test_a_causal_model_is_not_taken_for_one():
    zoo.get_method("prompt_tuning")(tiny_model("llama"))
