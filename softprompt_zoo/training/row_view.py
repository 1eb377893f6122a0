"""A row as the model sees it: where the prompt is placed, and which tokens the loss covers."""

import itertools
from typing import Any

from torch import Tensor

from softprompt_zoo.training.objectives.objective import Objective
from softprompt_zoo.training.objectives.rows import IGNORED

READ, SCORED = "read", "read, in the loss"
Parts = list[tuple[str, str]]
"""Pairs: what the model does with a part of a row, and its text."""


def view_row(model: Any, objective: Objective[Any, Any], tokenizer: Any, row: Any) -> Parts:
    """Describe a row, part by part.

    Args:
        model: The model with its prompt.
        objective: Makes batches of rows.
        tokenizer: The model's tokenizer.
        row: The tokenized row.

    Returns:
        The prompt, then runs of tokens inside or outside the loss, then separate labels.
    """
    batch = objective.collate([row])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0]
    is_in_place = labels.shape == batch["input_ids"][0].shape and not model.config.is_encoder_decoder
    marks = [is_in_place and int(label) != IGNORED for label in (labels if is_in_place else ids)]
    parts = [(f"prompt {name!r}", _where(model.prompts, name)) for name in model.prompts.active]
    for is_scored, run in itertools.groupby(zip(marks, ids, strict=True), key=lambda pair: pair[0]):
        parts.append((SCORED if is_scored else READ, _tokens(tokenizer, [token for _, token in run])))
    return parts if is_in_place else [*parts, _apart(model, tokenizer, labels)]


def _where(prompts: Any, name: str) -> str:
    prompt = prompts[name]
    placed = prompt.place(prompts.backbone).tokens
    return f"{prompt.num_virtual_tokens} virtual tokens, {placed.where}, seen by every token"


def _apart(model: Any, tokenizer: Any, labels: Tensor) -> tuple[str, str]:
    """Describe labels that are separate from the tokens that are read."""
    if model.config.is_encoder_decoder and labels.ndim:
        return "written, in the loss", _tokens(tokenizer, labels.tolist())
    return "label", str(labels.tolist())


def _tokens(tokenizer: Any, ids: list[int]) -> str:
    """Show tokens one by one, so that spaces and line ends are visible."""
    return " ".join(repr(tokenizer.decode([token])) for token in ids)
