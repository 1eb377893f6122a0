"""Gradients of prompts through layers that reentrant checkpointing recomputes.

A recomputed layer gets its keyword arguments outside the autograd graph. The prompt's keys and values
therefore enter as leaf copies, and a function on the input embeddings, whose gradient is computed last,
hands the gradients the leaves collected back to the prompt.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import CallState, Gated, SiteState


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, leaves: list[Tensor], *originals: Tensor) -> Tensor:
        ctx.leaves = leaves
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        collected = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in ctx.leaves]
        for leaf in ctx.leaves:
            leaf.grad = None
        return gradient, None, *collected


def anchor(module: Any, stack: Stack, state: CallState, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Let the state's keys and values survive checkpointing; does nothing without it.

    Args:
        module: The stack's module.
        stack: What is known of it.
        state: The state of this call; its tensors are replaced by leaf copies.
        kwargs: The stack's arguments. Not changed.

    Returns:
        The arguments, with input embeddings in place of ids where the anchor is needed.

    Raises:
        UnsupportedError: If layers share an attention module.
    """
    if not (torch.is_grad_enabled() and module.training):
        return kwargs
    if not any(getattr(child, "gradient_checkpointing", False) for child in module.modules()):
        return kwargs
    if stack.shares_attention:
        raise UnsupportedError(
            f"{type(module).__name__}'s layers share one attention module, which cannot tell them apart when "
            "checkpointing computes them again; call model.gradient_checkpointing_disable()"
        )
    gated = [part for parts in state.gated.values() for part in parts]
    originals = [tensor for site in state.sites.values() for tensor in (*site.keys, *site.values)]
    originals += [tensor for part in gated for layer in part.layers for tensor in layer or ()]
    if not any(tensor.requires_grad for tensor in originals):
        return kwargs
    leaves = [tensor.detach().requires_grad_() for tensor in originals]
    remaining = iter(leaves)

    def take(site: SiteState) -> SiteState:
        keys = tuple(next(remaining) for _ in site.keys)
        return dataclasses.replace(site, keys=keys, values=tuple(next(remaining) for _ in site.values))

    def take_gated(part: Gated) -> Gated:
        layers = [None if own is None else (next(remaining), next(remaining), next(remaining)) for own in part.layers]
        return Gated(tuple(layers), part.present)

    state.sites = {name: take(site) for name, site in state.sites.items()}
    state.gated = {name: [take_gated(part) for part in parts] for name, parts in state.gated.items()}
    if stack.reads_sound:
        return {**kwargs, "input_features": _Anchor.apply(kwargs["input_features"], leaves, *originals)}
    embeddings = kwargs.get("inputs_embeds")
    if embeddings is None:
        embeddings = stack.embed(kwargs["input_ids"])
    return {**kwargs, "input_ids": None, "inputs_embeds": _Anchor.apply(embeddings, leaves, *originals)}
