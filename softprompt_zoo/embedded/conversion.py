"""Conversion of a GGUF file to a folder for `from_pretrained`, which is read back and checked."""

from pathlib import Path
from typing import TYPE_CHECKING

from softprompt_zoo.embedded.models import EmbeddedModel
from softprompt_zoo.errors import BrokenModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def convert(model: EmbeddedModel, source: Path, folder: Path) -> None:
    """Write the model from a GGUF file in float32, with its tokenizer.

    Args:
        model: The model that the file should contain.
        source: The file.
        folder: An empty folder to write into.

    Raises:
        BrokenModelError: If the result is not that model.
    """
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    # Without this, transformers keeps the weights packed if it finds a kernel for them
    packing = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packing(dequantize=True)} if packing else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, **options
    )
    network.hf_quantizer = None  # the weights are plain now, but saving fails while it is set
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    # The GGUF reader drops the rule that every digit is a separate token; without it, the tokens for blanks before
    # numbers would differ from those in training.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = network.config.max_position_embeddings
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _check_conversion(model, network, tokenizer, folder)


def _check_conversion(
    model: EmbeddedModel,
    network: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
) -> None:
    """Read the saved model back and compare it with the converted one."""
    import torch
    import transformers

    saved_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    saved = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = "Founded in 1891:\n\n  2 floors, café"
    batch = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        same_logits = torch.allclose(network(**batch).logits, saved(**batch).logits, atol=1e-4)
    parameters = sum(parameter.numel() for parameter in saved.parameters())
    end = saved_tokenizer.convert_tokens_to_ids(model.end_token)
    checks = {
        f"{parameters} parameters instead of {model.parameters}": parameters == model.parameters,
        "logits that change when it is saved": same_logits,
        "a tokenizer that changes when it is saved": saved_tokenizer(text).input_ids == batch["input_ids"][0].tolist(),
        "a tokenizer that loses text": saved_tokenizer.decode(batch["input_ids"][0]) == text,
        "no chat template": bool(saved_tokenizer.chat_template),
        "no padding token": saved_tokenizer.pad_token_id is not None,
        f"an end of text that is not {model.end_token}": end
        == saved_tokenizer.eos_token_id
        == saved.generation_config.eos_token_id,
    }
    problems = [problem for problem, passed in checks.items() if not passed]
    if problems:
        raise BrokenModelError(
            f"the converted model {model.name!r} has {'; '.join(problems)}; transformers"
            f" {transformers.__version__} reads its GGUF file differently; install another version"
            f" of transformers, or download {model.hub_id} and give its folder"
        )
