"""Tiny models of every family, built from configs: no download, and the same random weights each time."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from softprompt_zoo.testing.decoders import DECODERS
from softprompt_zoo.testing.encoder_decoders import ENCODER_DECODERS
from softprompt_zoo.testing.encoders import ENCODERS
from softprompt_zoo.testing.sizes import IDS, ROTARY, SEQ2SEQ, WINDOW


def _gpt2() -> PreTrainedModel:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS)
    return GPT2LMHeadModel(config)


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **ROTARY))


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=16, **ROTARY))


def _gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        num_key_value_heads=1, head_dim=8, sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=8, **ROTARY
    )
    return Gemma3ForCausalLM(config)


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=WINDOW, **ROTARY))


def _gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**ROTARY))


def _bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**ROTARY))


def _distilbert() -> PreTrainedModel:
    sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
    return DistilBertForMaskedLM(DistilBertConfig(**IDS, **sizes))


def _modernbert() -> PreTrainedModel:
    special = {"cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(local_attention=2 * WINDOW, global_attn_every_n_layers=2, **special, **ROTARY)
    return ModernBertForMaskedLM(config)


def _t5() -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**SEQ2SEQ, **sizes))


def _bart() -> PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": 32, "max_position_embeddings": 64}
    for side, layers in (("encoder", 2), ("decoder", 3)):
        sizes |= {f"{side}_layers": layers, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 48}
    return BartForConditionalGeneration(BartConfig(**SEQ2SEQ, **sizes))


TINY_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "mistral": _mistral,
    "gpt_neox": _gpt_neox,
    "bert": _bert,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
    "t5": _t5,
    "bart": _bart,
}
"""Builders of the tiny models in every test run, by architecture."""

MORE_MODELS: dict[str, Callable[[], PreTrainedModel]] = {**DECODERS, **ENCODERS, **ENCODER_DECODERS}
"""Additional models, for the large table."""


CLASSIFICATION = "sequence classification"
"""A task for which `tiny_model` has classes."""
_CLASSES: dict[str, Any] = {CLASSIFICATION: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING}


def _made(architecture: str, task: str) -> PreTrainedModel:
    model = {**TINY_MODELS, **MORE_MODELS}[architecture]()
    if task:
        model.config.num_labels = 3
        model = _CLASSES[task][type(model.config)](model.config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    return model


def tiny_model(architecture: str, seed: int = 0, implementation: str = "sdpa", task: str = "") -> PreTrainedModel:
    """Build a tiny model in eval mode.

    Args:
        architecture: A key of `TINY_MODELS` or `MORE_MODELS`.
        seed: Seed of its weights; torch's global generator is not changed.
        implementation: Attention implementation; `"eager"` if the model has no other.
        task: `CLASSIFICATION` for the architecture's text classifier, with three classes.

    Returns:
        The model. Its weights are large enough that every change of the input changes the output.

    Raises:
        KeyError: If there is no such model, or none for the task.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also records a stack trace per device type
        model = _made(architecture, task)
    if model.can_generate():
        model.generation_config.eos_token_id = None
    chosen = implementation if model._supports_sdpa else "eager"
    model.set_attn_implementation(chosen)
    model.config._attn_implementation_internal = chosen  # Falcon refuses to set it, but reads it at each call
    return model.eval()
