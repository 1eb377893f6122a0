"""Tiny models of everything transformers' auto classes know, built from its configs by the names of their sizes."""

import inspect

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

VOCABULARY, WINDOW, LIMIT = 101, 6, 3_000_000
MAPPINGS = {
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": {"splinter": MODEL_MAPPING_NAMES.get("splinter", ""), **MODEL_FOR_MASKED_LM_MAPPING_NAMES},
    "seq2seq": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
SIZES = (
    {**IDS, "vocab_size_per_layer_input": VOCABULARY, "encoder_vocab_size": VOCABULARY}
    | {"decoder_vocab_size": VOCABULARY, "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY}
    | dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "true_hidden_size"), 32)
    | dict.fromkeys(
        ("intermediate_size", "ffn_dim", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 48
    )
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4)
    | dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4)
    | dict.fromkeys(("head_dim", "attention_head_dim", "d_kv", "query_pre_attn_scalar", "intra_bottleneck_size"), 8)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 64)
    | dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), 64)
    | {"num_key_value_heads": 2, "num_query_groups": 2, "sliding_window": WINDOW, "use_sliding_window": True}
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
    | dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2)
    | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16)
    | {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "expert_capacity": 64}
    | {"q_lora_rank": 12, "kv_lora_rank": 16, "hidden_size_per_layer_input": 8, "experts_implementation": "eager"}
    | {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    | {"attention_type": "original_full", "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "ngram": 2}
    | {"forced_bos_token_id": None, "forced_eos_token_id": None}
)
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "layernum", "max_window_layers")
DEPTHS += ("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
"""Sizes that count layers."""
LATENT = {"num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 6, "qk_head_dim": 16}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
DENSE = {"encoder_sparse_step": 0, "decoder_sparse_step": 0}
PARTICULAR = (
    dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "axk1"), LATENT)
    | {"gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4}}
    | dict.fromkeys(("exaone4", "exaone_moe"), ALTERNATING)
    | {"gemma4_text": {**ALTERNATING, "num_kv_shared_layers": 2}}
    | {"gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}}
    | {"gemma3n_text": {**ALTERNATING, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4}}
    | {"nllb-moe": DENSE, "switch_transformers": DENSE}
    | {"longformer": {"attention_window": 4}, "led": {"attention_window": 4}}
)
"""Sizes by architecture that must fit each other, or that show what is particular about the model."""


class NoTinyModelError(Exception):
    """transformers' defaults leave no tiny model of this kind."""


def build(kind, name, depth=2):
    """Build a tiny model, the same each time, with weights large enough that every part of it counts.

    Each stack has `depth` layers, unless `PARTICULAR` sets another number to show something particular.
    """
    if name not in MAPPINGS[kind] or not MAPPINGS[kind][name]:
        raise NoTinyModelError("this version of transformers does not have it")
    cls = MAPPINGS[kind][name]
    try:
        config_class = CONFIG_MAPPING[name]
        known = {*dir(config_class()), *inspect.signature(config_class.__init__).parameters}
        known -= {key for key in known if isinstance(getattr(config_class, key, None), property)}
        sizes = {key: value for key, value in (SIZES | dict.fromkeys(DEPTHS, depth)).items() if key in known}
        sizes |= PARTICULAR.get(name, {})
        config = config_class(**sizes)
        if hasattr(config, "is_decoder") and kind != "seq2seq":
            config.is_decoder = kind == "causal"
        if kind == "masked" and config.is_encoder_decoder:
            raise NoTinyModelError("it is an encoder-decoder")
        cls = getattr(transformers, cls if isinstance(cls, str) else cls[0])
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in cls(config).parameters())
        if count > LIMIT:
            raise NoTinyModelError(f"it has {count} parameters")
        torch.manual_seed(0)
        model = cls(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        text = torch.arange(3, 8)[None]
        with torch.no_grad():
            assert model(text, **({"decoder_input_ids": text} if kind == "seq2seq" else {}))[0].isfinite().all()
    except NoTinyModelError:
        raise
    except Exception as error:
        raise NoTinyModelError(str(error)) from error
    if model.can_generate():
        model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    return model
