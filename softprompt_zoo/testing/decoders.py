"""Additional tiny decoders, for the large table; `models.py` has those for every test run."""

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedModel

from softprompt_zoo.testing.sizes import IDS, ROTARY, WINDOW

GROUPED: dict[str, Any] = {**ROTARY, "num_key_value_heads": 2}
ALTERNATING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FALCON: dict[str, Any] = {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "experts_implementation": "eager"}  # others lack float64
OPT: dict[str, Any] = {**IDS, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def _from(name: str, /, **sizes: Any) -> Callable[[], PreTrainedModel]:
    """Return a function that builds a model of the transformers class `<name>ForCausalLM` from `<name>Config`."""

    def build() -> PreTrainedModel:
        made = getattr(transformers, f"{name}Config")(**sizes)
        model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(made)
        return model

    return build


DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    # Learned positions, counted from 2.
    "opt": _from("OPT", **OPT, max_position_embeddings=64, word_embed_proj_dim=32),
    # Embeddings narrower than the layers, followed by norms, as in opt-350m.
    "opt_narrow": _from("OPT", **OPT, max_position_embeddings=64, word_embed_proj_dim=16, do_layer_norm_before=False),
    # Rotary embeddings on half of each head.
    "phi": _from("Phi", **GROUPED, partial_rotary_factor=0.5),
    "phi3": _from("Phi3", **GROUPED, sliding_window=WINDOW),
    # A window only in the upper layer.
    "qwen2": _from("Qwen2", **GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3_moe": _from(
        "Qwen3Moe", **GROUPED, **EXPERTS, head_dim=16, num_experts=4, moe_intermediate_size=16, norm_topk_prob=True
    ),
    # Capped attention scores, which sdpa does not support.
    "gemma2": _from(
        "Gemma2", **GROUPED, **ALTERNATING, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=2.0
    ),
    # Attention sinks, experts, YaRN.
    "gpt_oss": _from("GptOss", **GROUPED, **ALTERNATING, **EXPERTS, head_dim=8, num_local_experts=4),
    "olmo2": _from("Olmo2", **GROUPED),
    "granite": _from("Granite", **GROUPED, attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.5),
    "starcoder2": _from("Starcoder2", **GROUPED, sliding_window=WINDOW),
    # No positions at all in the layers with full attention.
    "cohere2": _from("Cohere2", **GROUPED, **ALTERNATING),
    "smollm3": _from("SmolLM3", **GROUPED, no_rope_layers=[1, 0]),
    # The rest do not use transformers' attention interface.
    "nemotron": _from("Nemotron", **GROUPED, partial_rotary_factor=0.5),
    "stablelm": _from("StableLm", **GROUPED, partial_rotary_factor=0.5),
    "gptj": _from("GPTJ", **IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    "codegen": _from("CodeGen", **IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    # A window in the upper layer, which the model keeps in its own table.
    "gpt_neo": _from(
        "GPTNeo",
        **IDS,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
    ),
    "bloom": _from("Bloom", **IDS, hidden_size=32, n_layer=2, n_head=4),
    # One head of keys and values, rotary embeddings.
    "falcon": _from("Falcon", **FALCON, multi_query=True, new_decoder_architecture=False),
    "falcon_grouped": _from("Falcon", **FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "falcon_alibi": _from("Falcon", **FALCON, multi_query=True, new_decoder_architecture=False, alibi=True),
    "mpt": _from("Mpt", **IDS, d_model=32, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=64, use_cache=True),
}
"""Builders of the tiny models, by architecture."""
