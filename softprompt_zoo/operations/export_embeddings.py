"""Export prompts as bare embeddings, for engines that accept embeddings instead of tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from softprompt_zoo.files import embeddings
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.operations.input_prompts import check_input_numbers, input_tokens
from softprompt_zoo.operations.new_folder import check_free, moved_into_place


@torch.no_grad()
def export_embeddings(
    model: PreTrainedModel, directory: Path, names: Sequence[str] | None = None, task: int | None = None
) -> None:
    """Write prompts as embeddings.

    Args:
        model: A model with prompts.
        directory: The folder to write; it must be missing or empty.
        names: The prompts; by default the active ones.
        task: The task to write, for prompts with several.

    Raises:
        ValueError: If the directory is not empty, a prompt does not have that task, or none has tasks.
        UnsupportedError: If a prompt has keys and values, or numbers that are not finite. Nothing is written.
    """
    prompts: Prompts = model.prompts  # type: ignore[assignment]
    tokens = input_tokens(prompts, names, task, "embeddings")
    dtype: Any = model.get_input_embeddings().weight.dtype  # type: ignore[union-attr]
    check_input_numbers(tokens, dtype)
    check_free(directory)
    with moved_into_place(directory) as folder:
        embeddings.write(folder, {name: own.to(dtype) for name, own in tokens.items()}, tuple(tokens))
