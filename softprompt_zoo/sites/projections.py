"""Hidden states turned into keys and values by the frozen projections of single attention layers."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone import KEYWORD, Stack
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.attention import Capture
from softprompt_zoo.sites.words import ready
from softprompt_zoo.tokens import LayerTokens, SiteTokens

LENGTH = 3
"""Tokens of the run that shows how a layer is called; different from the one that replaces them."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class Projector:
    """Calls attention layers alone, each token as a row of one position, the first one."""

    def __init__(self, stacks: Mapping[str, Stack]) -> None:
        self._stacks = stacks
        self._calls: dict[Any, list[_Call]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Projector":
        import copy

        return Projector(copy.deepcopy(self._stacks, memo))

    def __call__(self, site: str, states: Sequence[Tensor | None]) -> LayerTokens:
        """Project hidden states.

        Args:
            site: The site of a self-attention.
            states: Per layer `(tokens, hidden)`, `None` for a layer without tokens.

        Returns:
            Keys and values per layer as attention sees them at the first position, where a rotary embedding
            changes nothing; `None` where `states` is. Gradients flow to the states.

        Raises:
            UnsupportedError: If the model's attention is called in a way of its own.
        """
        stack = self._stacks[site]
        if stack.is_disentangled:
            raise UnsupportedError(f"{type(stack.module).__name__}'s projections cannot be called one layer at a time")
        keys: list[Tensor | None] = []
        values: list[Tensor | None] = []
        with ready(self._stacks):
            calls = self._recorded(stack, site)
            for layer, hidden in enumerate(states):
                if hidden is None:
                    keys.append(None)
                    values.append(None)
                    continue
                recorded = Capture()
                _call(stack.attentions[site][layer], calls[layer], hidden, recorded)
                [key], [value] = recorded.keys.values(), recorded.values.values()
                keys.append(key[:, :, 0].transpose(0, 1))
                values.append(value[:, :, 0].transpose(0, 1))
        return LayerTokens({site: SiteTokens(tuple(keys), tuple(values))})

    def _recorded(self, stack: Stack, site: str) -> list[_Call]:
        weight: Any = stack.embedding.weight
        key = (site, weight.device, weight.dtype)
        if key not in self._calls:
            self._calls[key] = _record(stack, site, weight)
        return self._calls[key]


@torch.no_grad()
def _record(stack: Stack, site: str, weight: Tensor) -> list[_Call]:
    """Run a stack once and note how its attention layers are called, cut to one position."""
    calls: list[_Call] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((tuple(_cut(value) for value in args), {name: _cut(value) for name, value in kwargs.items()}))

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in set(stack.attentions[site])]
    ids = torch.arange(LENGTH, device=weight.device)[None] % weight.shape[0]
    try:
        stack.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **{KEYWORD: Capture()})
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _cut(value: Any) -> Any:
    """Cut what has one entry per position to the first one."""
    if isinstance(value, tuple):
        return tuple(_cut(part) for part in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1 and value.shape[0] == LENGTH:
        return value[:1]
    return value[:, :1] if value.ndim > 1 and value.shape[1] == LENGTH else value


def _call(module: Any, call: _Call, hidden: Tensor, recorded: Capture) -> None:
    args, kwargs = call
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    named = dict(zip(names, args, strict=False))
    states = "hidden_states" if "hidden_states" in kwargs else names[0]
    # What follows the states positionally is no mask in any model that we know; a mask would be 4-D.
    rest = {name: None if isinstance(value, Tensor) and value.ndim == 4 else value for name, value in named.items()}
    template: Any = {**named, **kwargs}[states]
    rows = hidden[:, None, :].to(device=template.device, dtype=template.dtype)
    module(**{**rest, **kwargs, "attention_mask": None, KEYWORD: recorded, states: rows})
