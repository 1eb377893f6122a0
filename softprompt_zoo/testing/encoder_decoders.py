"""Additional tiny encoder-decoders, for the large table; `models.py` has those for every test run."""

from collections.abc import Callable
from typing import Any

from transformers import (
    LEDConfig,
    LEDForConditionalGeneration,
    LongT5Config,
    LongT5ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from softprompt_zoo.testing.sizes import ROTARY, SEQ2SEQ, WINDOW

T5 = {**SEQ2SEQ, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def _bart_like() -> dict[str, Any]:
    sizes: dict[str, Any] = {"d_model": 32, "max_position_embeddings": 64}
    for side, layers in (("encoder", 2), ("decoder", 3)):
        sizes |= {f"{side}_layers": layers, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 48}
    return {**SEQ2SEQ, **sizes}


def _mt5() -> PreTrainedModel:
    return MT5ForConditionalGeneration(MT5Config(**{**T5, "d_ff": 12}))


def _longt5() -> PreTrainedModel:
    return LongT5ForConditionalGeneration(LongT5Config(encoder_attention_type="local", local_radius=3, **T5))


def _mbart() -> PreTrainedModel:
    return MBartForConditionalGeneration(MBartConfig(scale_embedding=True, **_bart_like()))


def _pegasus() -> PreTrainedModel:
    return PegasusForConditionalGeneration(PegasusConfig(scale_embedding=True, **_bart_like()))


def _marian() -> PreTrainedModel:
    return MarianMTModel(
        MarianConfig(scale_embedding=True, static_position_embeddings=True, **{**_bart_like(), "decoder_layers": 2})
    )


def _led() -> PreTrainedModel:
    sizes = _bart_like()
    bound = sizes.pop("max_position_embeddings")
    sizes |= {"max_encoder_position_embeddings": bound, "max_decoder_position_embeddings": bound}
    return LEDForConditionalGeneration(LEDConfig(attention_window=2 * WINDOW, **sizes))


def _t5gemma() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    heads = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    sides = {
        side: T5GemmaModuleConfig(layer_types=kinds, sliding_window=WINDOW, **heads, **ROTARY)
        for side in ("encoder", "decoder")
    }
    config = T5GemmaConfig(**sides, vocab_size=ROTARY["vocab_size"])
    config.decoder_start_token_id = SEQ2SEQ["bos_token_id"]  # it masks padding tokens of the decoder's text
    return T5GemmaForConditionalGeneration(config)


def _whisper() -> PreTrainedModel:
    sizes = _bart_like()
    sizes |= {"max_target_positions": sizes.pop("max_position_embeddings"), "max_source_positions": 10}
    config = WhisperConfig(num_mel_bins=6, begin_suppress_tokens=None, **sizes)
    return WhisperForConditionalGeneration(config)


ENCODER_DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "mt5": _mt5,
    "mbart": _mbart,
    "pegasus": _pegasus,
    "marian": _marian,
    "t5gemma": _t5gemma,
    "longt5": _longt5,
    "led": _led,
    "whisper": _whisper,
}
"""Builders of the tiny models, by architecture."""
