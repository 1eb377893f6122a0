"""A tiny Gemma 4, whose layers differ in size or read the keys and values of other layers."""

import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig


def gemma4(**sizes):
    torch.manual_seed(0)
    layers = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 64, "sliding_window": 6}
    inputs = {"vocab_size_per_layer_input": 101, "hidden_size_per_layer_input": 4, "vocab_size": 101}
    widths = {"hidden_size": 16, "intermediate_size": 32}
    model = Gemma4ForCausalLM(Gemma4TextConfig(**layers, **heads, **inputs, **widths, **sizes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    return model
