"""The hidden states that the frozen model itself computes for a text, without prompts."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.eval_mode import switched_off
from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.shapes import Bool, Float, Int
from softprompt_zoo.sites.stack import Stack


@torch.no_grad()
def states_of(
    stack: Stack,
    embeddings: Float[Tensor, "rows length hidden"],
    mask: Bool[Tensor, "rows length"],
    positions: Int[Tensor, "#rows length"],
) -> Float[Tensor, "rows length hidden"]:
    """Run a stack on only a text.

    Args:
        stack: The stack, with or without prompts. Not changed.
        embeddings: Embeddings of the text.
        mask: Which positions are the text.
        positions: Position of each token in its row, from 0.

    Returns:
        The last hidden states, as in eval mode, without gradient.
    """
    inputs: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": mask.long(), "use_cache": False}
    if stack.takes_position_ids:
        inputs["position_ids"] = positions + stack.position_start
    if not stack.cache_argument:
        del inputs["use_cache"]
    if stack.has_hooks:
        inputs[STATE_KEYWORD] = None
    with switched_off(stack.module, "training"), switched_off(stack.module, "gradient_checkpointing"):
        states: Tensor = stack.module(**inputs).last_hidden_state
    return states


class LastStates:
    """Runs a stack on only a text on the first call, and returns the same result from then on."""

    def __init__(
        self,
        stack: Stack,
        embeddings: Float[Tensor, "rows length hidden"],
        mask: Bool[Tensor, "rows length"],
        positions: Int[Tensor, "#rows length"],
    ) -> None:
        self._read = (stack, embeddings, mask, positions)
        self._found: Float[Tensor, "rows length hidden"] | None = None

    def __call__(self) -> Float[Tensor, "rows length hidden"]:
        """Return the last hidden states, without gradient."""
        if self._found is None:
            self._found = states_of(*self._read)
        return self._found
