"""Computed keys and values that are kept in eval mode, until anything changes that they depend on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo import adapters
from softprompt_zoo.backbone import Stack
from softprompt_zoo.sites.arrange import Call, Combination
from softprompt_zoo.sites.shared_pass import Prefix, causal_prefix
from softprompt_zoo.tokens import InputTokens, Placement, to_tensors

KEPT = 64
"""Combinations whose keys and values are kept."""
KEPT_BORROWED = 4
"""Those of them in which a prompt of a bank stands: one user's is seldom the next one's."""


@dataclasses.dataclass
class _Kept:
    placements: list[Placement]
    copies: list[Tensor]
    """The tokens as they were."""
    model: Any
    """What the pass depends on in the model; `None` if a decoding step made it."""
    prefix: Prefix


class KeptPrefixes:
    """The kept keys and values of one model's prompts."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Combination, ...], _Kept] = {}

    def prefix(self, stack: Stack, call: Call, is_decoding: bool, own: Sequence[str]) -> Prefix:
        """Turn a causal call's prompts into keys and values, or return the kept ones if nothing changed.

        Args:
            stack: The causal stack.
            call: The prompts of this forward.
            is_decoding: Whether text is in the cache already; nothing is compared then but identity.
            own: Names of the model's own prompts; others are a bank's.

        Returns:
            Keys and values per combination.
        """
        placements = [call.placements[name] for name in call.selection.names]
        has_pass = any(isinstance(placement.tokens, InputTokens) for placement in placements)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or call.is_training or not has_pass:
            return causal_prefix(stack, call)
        key = call.selection.combinations
        model = None if is_decoding else _state(stack)
        kept = self._kept.get(key)
        if kept is not None:
            if is_decoding and all(a is b for a, b in zip(kept.placements, placements, strict=True)):
                return kept.prefix
            if not is_decoding and kept.model == model and _is_equal(kept, placements):
                kept.placements = placements
                return kept.prefix
        prefix = causal_prefix(stack, call)
        copies = [tensor.detach().clone() for tensor in _tensors(placements)]
        self._kept.pop(key, None)
        for keys, limit in ((list(self._kept), KEPT), (self._borrowed(own), KEPT_BORROWED)):
            for old in keys[: max(0, len(keys) - limit + 1)]:
                self._kept.pop(old, None)
        self._kept[key] = _Kept(placements, copies, model, prefix)
        return prefix

    def _borrowed(self, own: Sequence[str]) -> list[tuple[Combination, ...]]:
        return [key for key in self._kept if any(name.partition("#")[0] not in own for part in key for name in part)]


def _state(stack: Stack) -> Any:
    return [(p.data_ptr(), p._version) for p in stack.module.parameters()], adapters.state(stack.module)


def _tensors(placements: list[Placement]) -> list[Tensor]:
    return [tensor for placement in placements for tensor in to_tensors(placement.tokens).values()]


def _is_equal(kept: _Kept, placements: list[Placement]) -> bool:
    now = _tensors(placements)
    return (
        len(kept.copies) == len(now)
        and all(a.weight == b.weight for a, b in zip(kept.placements, placements, strict=True))
        and all(
            a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
            for a, b in zip(kept.copies, now, strict=True)
        )
    )
