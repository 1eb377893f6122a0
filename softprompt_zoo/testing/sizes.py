"""Sizes shared by the tiny models."""

VOCABULARY = 101
WINDOW = 6
"""Sliding window in positions, shorter than the texts of the suite."""

IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROTARY = {**IDS, **SIZES, "max_position_embeddings": 64}
SEQ2SEQ = {**IDS, "decoder_start_token_id": 0, "forced_eos_token_id": None}
