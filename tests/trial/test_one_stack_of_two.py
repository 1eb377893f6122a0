"""An encoder without its decoder may have the config of an encoder-decoder; it is one stack all the same."""

import pytest
import torch
from transformers import (
    MT5Config,
    MT5EncoderModel,
    T5Config,
    T5EncoderModel,
    T5ForTokenClassification,
    UMT5Config,
    UMT5EncoderModel,
    UMT5ForTokenClassification,
)

import softprompt_zoo as zoo

SIZES = {"vocab_size": 101, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
MODELS = [
    (T5EncoderModel, T5Config),
    (MT5EncoderModel, MT5Config),
    (UMT5EncoderModel, UMT5Config),
    (T5ForTokenClassification, T5Config),
    (UMT5ForTokenClassification, UMT5Config),
]
TEXT = torch.arange(5, 12)[None]


@pytest.mark.parametrize("is_encoder_decoder", [True, False])
@pytest.mark.parametrize(("model_class", "config_class"), MODELS)
def test_virtual_tokens_are_read_like_words_in_front(model_class, config_class, is_encoder_decoder):
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES)).eval()
    model.config.is_encoder_decoder = is_encoder_decoder
    words = torch.tensor([[20, 30, 40]])
    with torch.no_grad():
        expected = model(input_ids=torch.cat([words, TEXT], dim=1))[0][:, words.shape[1] :]
        embedded = model.get_input_embeddings()(words[0])
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=words.shape[1])
    assert model.prompts.backbone.family == "encoder"
    with torch.no_grad():
        model.prompts["default"].learned.embeddings.copy_(embedded)
        found = model(input_ids=TEXT)[0]
    assert torch.allclose(found, expected, atol=1e-5)
