"""Runs one stack on real words and on virtual tokens made of them, and defines when the results agree."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.sites.call import Call, Trace
from softprompt_zoo.sites.hooks import bind, unbind
from softprompt_zoo.sites.request import Request
from softprompt_zoo.sites.selection import Part, Selection
from softprompt_zoo.sites.shared_pass import record_keys_values
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference due to rounding, relative to the states; coarse dtypes get `COARSE_TOLERANCE`."""
COARSE_TOLERANCE = 0.05
EFFECT_TOLERANCE = 0.02
"""Largest difference due to rounding, relative to the words' effect."""


class FixedPrompts:
    """The prompts of a trial, as needed by the hooks."""

    def __init__(self, **prompts: VirtualTokens) -> None:
        placements = {Part(name): Placement(tokens) for name, tokens in prompts.items()}
        combinations = tuple((part,) for part in placements)
        self.call = Call(Selection(combinations, None), placements, False, Trace())

    def keys(self) -> list[str]:
        """Return their names."""
        return self.call.selection.names

    def resolve(self, request: Request, cache: Any, rows: int | None = None) -> Call:
        """Return the same call for every forward."""
        return self.call


class RehearsedStack:
    """One stack under test."""

    def __init__(self, family: str, stack: Stack) -> None:
        self.family = family
        self.stack = stack
        self.close = max(
            TOLERANCES.get(dtype, COARSE_TOLERANCE) for dtype in {tensor.dtype for tensor in stack.module.parameters()}
        )

    def run(self, ids: Tensor, inputs: Mapping[str, Any], tokens: VirtualTokens | None = None) -> Tensor:
        """Return the last hidden states of a text, after a prompt or without one."""
        inputs = {"use_cache": False, **inputs} if self.stack.cache_argument else inputs
        if tokens is not None:
            bind(self.family, self.stack, FixedPrompts(words=tokens))
        try:
            states: Tensor = self.stack.module(input_ids=ids, **inputs).last_hidden_state
        finally:
            if tokens is not None:
                unbind(self.stack)
        return states

    def record(self, words: Tensor, inputs: Mapping[str, Any]) -> LayerTokens:
        """Return the words' keys and values at every site; in cross-attention, those of as many encoded positions."""
        _, recorded = record_keys_values(self.stack, {"input_ids": words, "use_cache": False, **inputs})
        found = {}
        for site, modules in self.stack.attentions.items():
            places = [AttentionLayer(site, layer) for layer in range(len(modules))]
            keys, values = (
                [of[place][0, :, : words.shape[1]] for place in places] for of in (recorded.keys, recorded.values)
            )
            found[site] = SiteTokens(tuple(keys), tuple(values))
        return LayerTokens(found)

    def agree(self, given: Tensor, expected: Tensor, alone: Tensor | None = None) -> bool:
        """Compare states token by token; with `alone`, the states without the words, relative to the words' effect."""
        given, expected = given.double(), expected.double()
        allowed = self.close * expected.norm(dim=-1)
        if alone is not None:
            allowed = allowed + EFFECT_TOLERANCE * (expected - alone.double()).norm(dim=-1)
        is_right = (given - expected).norm(dim=-1) <= allowed
        # Rounding may route a token to another expert: in low precision, one correct token is evidence enough.
        return bool(is_right.all() if self.close < COARSE_TOLERANCE else is_right.any())
