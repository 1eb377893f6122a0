"""Gradients of prompts through layers recomputed by reentrant checkpointing.

A recomputed layer gets its keyword arguments outside the autograd graph. The prompt's keys and values
therefore enter as leaf copies, and a function on the input embeddings, whose gradient is computed last,
passes the gradients collected in the leaves back to the prompt.
"""

from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import CallState


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embeddings: Float[Tensor, "..."], leaves: list[Float[Tensor, "..."]], *originals: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        ctx.leaves = leaves
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."] | None, ...]:  # type: ignore[override]
        collected = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in ctx.leaves]
        for leaf in ctx.leaves:
            leaf.grad = None
        return gradient, None, *collected


def anchor(module: Any, stack: Stack, state: CallState, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Make the state's keys and values survive checkpointing; without checkpointing, do nothing.

    Args:
        module: The stack's module, in training mode.
        stack: The stack.
        state: The state of this call; its tensors are replaced by leaf copies.
        kwargs: The stack's arguments. Not changed.

    Returns:
        The arguments, with input embeddings in place of ids if the anchor is needed.

    Raises:
        UnsupportedError: If layers share an attention module.
    """
    if not (torch.is_grad_enabled() and is_checkpointed(module)):
        return kwargs
    if stack.shares_attention:
        raise UnsupportedError(
            f"{type(module).__name__}'s layers share one attention module, which cannot tell them apart when "
            "checkpointing recomputes them; call model.gradient_checkpointing_disable()"
        )
    originals, leaves = _put_leaves(state)
    if not leaves and any([own.branch.is_trained for own in state.branches]):
        originals, leaves = _of_nothing()
    return _anchored(stack, kwargs, leaves, originals) if leaves else kwargs


def _anchored(
    stack: Stack, kwargs: dict[str, Any], leaves: list[Float[Tensor, "..."]], originals: list[Float[Tensor, "..."]]
) -> dict[str, Any]:
    """Return the arguments with the anchor on the stack's input."""
    if stack.is_audio_encoder:
        return {**kwargs, "input_features": _Anchor.apply(kwargs["input_features"], leaves, *originals)}
    embeddings = kwargs.get("inputs_embeds")
    if embeddings is None:
        embeddings = stack.embed(kwargs["input_ids"])
    return {**kwargs, "input_ids": None, "inputs_embeds": _Anchor.apply(embeddings, leaves, *originals)}


def _put_leaves(state: CallState) -> tuple[list[Float[Tensor, "..."]], list[Float[Tensor, "..."]]]:
    """Put leaf copies into a state that needs gradients; return its tensors and the leaves, none if it needs none."""
    originals: list[Tensor] = []
    leaves: list[Tensor] = []

    def leaf(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        originals.append(tensor)
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1]

    sites = {name: site.map(leaf) for name, site in state.sites.items()}
    gated = {name: [part.map(leaf) for part in parts] for name, parts in state.gated.items()}
    if not any([tensor.requires_grad for tensor in originals]):
        return [], []
    state.sites, state.gated = sites, gated
    return originals, leaves


def _of_nothing() -> tuple[list[Float[Tensor, ""]], list[Float[Tensor, ""]]]:
    """Return a tensor and its leaf that do nothing: parameters inside the layers need an input with a gradient."""
    return [torch.zeros((), requires_grad=True)], [torch.zeros(())]


def is_checkpointed(module: nn.Module) -> bool:
    """Return whether a layer of a module is recomputed for its gradient."""
    return any([getattr(child, "gradient_checkpointing", False) for child in module.modules()])
