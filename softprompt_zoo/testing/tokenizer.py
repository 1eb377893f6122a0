"""A tokenizer for the tiny models: `w5` is the token 5."""

from typing import Any

from softprompt_zoo.testing.sizes import VOCABULARY

SPECIAL_TOKENS = {
    "pad_token": "[pad]",
    "bos_token": "[bos]",
    "eos_token": "[eos]",
    "unk_token": "[unk]",
    "mask_token": "[mask]",
}


def tiny_tokenizer(words: int = VOCABULARY, with_special_tokens: bool = False) -> Any:
    """Build a word-level tokenizer without a download.

    Args:
        words: Size of its vocabulary: five special tokens, then `w5` to `w<words - 1>`.
        with_special_tokens: Whether it adds the begin and end tokens to a text.

    Returns:
        A transformers tokenizer.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # Special tokens are split off wherever they occur in a text, so none may be the start of a word.
    names = [*SPECIAL_TOKENS.values(), *(f"w{index}" for index in range(len(SPECIAL_TOKENS), words))]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if with_special_tokens:
        special = [("[bos]", 1), ("[eos]", 2)]
        backend.post_processor = processors.TemplateProcessing(single="[bos] $A [eos]", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)
