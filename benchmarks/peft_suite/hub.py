"""The tiny models that PEFT's tests request from the hub, built from configs into a local hub cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROTARY: dict[str, Any] = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512}
BERT: dict[str, Any] = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 512}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
OPT: dict[str, Any] = {**SIZES, "ffn_dim": 64, "max_position_embeddings": 512, "word_embed_proj_dim": 32}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
BART: dict[str, Any] = {
    "d_model": 32,
    "max_position_embeddings": 512,
    **{f"{stack}_{what}": size for stack in ("encoder", "decoder") for what, size in
       (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))},
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    **SIZES,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 64,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 4,
    "use_double_wide_mlp": True,
    "max_position_embeddings": 512,
}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPT", "ForCausalLM", OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2", "LMHeadModel", GPT),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2", "LMHeadModel", GPT),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2", "LMHeadModel", GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJ", "ForCausalLM", {**GPT, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("Llama", "ForCausalLM", ROTARY),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("Llama", "ForCausalLM", ROTARY),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2", "ForCausalLM", ROTARY),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": ("Qwen3", "ForCausalLM", {**ROTARY, "head_dim": 8}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3", "ForCausalLM", {**ROTARY, "head_dim": 8}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("Mistral", "ForCausalLM", ROTARY),
    "peft-internal-testing/tiny-random-gemma4-E2B": ("Gemma4", "ForCausalLM", GEMMA4),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5", "ForConditionalGeneration", T5),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("Bart", "ForConditionalGeneration", BART),
    "peft-internal-testing/tiny-random-BertModel": ("Bert", "Model", BERT),
    "peft-internal-testing/tiny-random-RobertaModel": ("Roberta", "Model", BERT),
    "peft-internal-testing/tiny-random-DebertaModel": ("Deberta", "Model", BERT),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2", "Model", BERT),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("Bert", "ForSequenceClassification", BERT),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "Roberta",
        "ForSequenceClassification",
        BERT,
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("Llama", "ForSequenceClassification", ROTARY),
}
"""For each name on the hub, the model's family, the rest of its class name, and its sizes."""

CONFIGS = {"Gemma3": "Gemma3TextConfig", "Gemma4": "Gemma4TextConfig"}
"""Configs that are not named after the family."""

QUOTES = ["The journey is the reward.", "Simplicity is the soul of efficiency.", "Well begun is half done."] * 16


def build(cache: Path) -> None:
    """Write all models into a folder that huggingface_hub uses as its cache; existing models are kept.

    Args:
        cache: The folder, for `HF_HUB_CACHE`.
    """
    for name, (family, head, sizes) in MODELS.items():
        repository = cache / f"models--{name.replace('/', '--')}"
        folder = repository / "snapshots" / "0"
        if (repository / "refs" / "main").exists():
            continue
        torch.manual_seed(0)
        tokenizer = byte_tokenizer()
        ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        extra = {"decoder_start_token_id": 2} if family in ("T5", "Bart") else {}
        config = getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**ids, **extra, **sizes)
        if family == "Gemma4":
            config.vocab_size_per_layer_input = len(tokenizer)
        make: Callable[[Any], Any] = getattr(transformers, f"{family}{head}")
        model = make(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)  # transformers' initial values are so small that a prompt would change little
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text("0", "utf-8")


def byte_tokenizer() -> Any:
    """Return a tokenizer whose tokens are bytes, which accepts any text."""
    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>"])}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        words[byte] = len(words)
    tokenizer = Tokenizer(token_models.BPE(words, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
