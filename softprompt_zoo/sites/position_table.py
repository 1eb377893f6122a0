"""Stacks with a position table: how much text fits, and how to move it if the stack counts positions itself."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.shapes import Float, Int
from softprompt_zoo.sites.stack import Stack

Past = int | Int[Tensor, ""]
"""Number of tokens in a cache; a static one counts them on the device."""


def check_budget(stack: Stack, total: int, virtual: int) -> None:
    """Refuse a text that does not fit after its prompt.

    Args:
        stack: The stack, with its table of learned positions.
        total: Positions needed, including virtual ones.
        virtual: Number of virtual positions among them.

    Raises:
        ValueError: If the table is too short.
    """
    if stack.position_table is None:
        return
    offset = part_of(stack.position_table, "offset", stack.position_start)
    budget = stack.position_table.num_embeddings - offset
    if total <= budget:
        return
    if virtual >= budget:
        raise ValueError(
            f"{virtual} virtual tokens in front of a row leave no room for text in the model's {budget} positions; "
            "give the row fewer prompts, or shorter ones"
        )
    raise ValueError(
        f"the text needs {total - virtual} positions after {virtual} virtual tokens, but the model has {budget}; "
        f"shorten the text to {budget - virtual} tokens"
    )


def shift_to(
    stack: Stack,
    embeddings: Float[Tensor, "rows length hidden"],
    past: Past,
    positions: Int[Tensor, "#rows length"],
) -> Float[Tensor, "rows length hidden"]:
    """Move text in a stack that counts positions itself: add the difference of two rows of the position table.

    BART's decoder takes no `position_ids`. Changing the embeddings needs no state on its modules.

    Args:
        stack: A stack with a position table and without `position_ids`.
        embeddings: Embeddings of the text. Not changed.
        past: Tokens in the cache as the stack sees it, from which it will count.
        positions: Target positions of the text, from 0.

    Returns:
        New embeddings.
    """
    table: Any = stack.position_table
    offset = part_of(table, "offset", 0)
    counted = torch.arange(embeddings.shape[1], device=embeddings.device)[None] + past
    wanted = functional.embedding(positions + offset, table.weight)
    difference = wanted - functional.embedding(counted + offset, table.weight)
    return embeddings + difference / stack.embeddings_scale
