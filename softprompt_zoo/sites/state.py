"""What one stack's attention has of a forward: the prompts of each site, or what records a pass over virtual tokens."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from softprompt_zoo.sites.call import Call, Layout
from softprompt_zoo.sites.site import Site


@dataclasses.dataclass
class Gated:
    """One gated prompt of every combination at one site; the n-th of a combination is in the n-th of these."""

    layers: tuple[tuple[Tensor, Tensor, Tensor] | None, ...]
    """Per layer keys and values, each `(combinations, kv_heads, tokens, head_dim)`, and gates
    `(combinations, heads or 1)`, zero where a combination has no tokens; `None` for a layer where none has any."""
    present: Tensor | None
    """`(combinations, tokens)` booleans, false where shorter prompts are padded; `None` if none is."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Gated":
        """Return the same with other keys, values and gates."""
        layers = [None if own is None else (change(own[0]), change(own[1]), change(own[2])) for own in self.layers]
        return dataclasses.replace(self, layers=tuple(layers))


@dataclasses.dataclass
class SiteState:
    """What one site shows the attention of its layers, for each distinct combination of prompts."""

    keys: tuple[Tensor, ...]
    """Per layer `(combinations, kv_heads, tokens, head_dim)`."""
    values: tuple[Tensor, ...]
    """Per layer `(combinations, kv_heads, tokens, head_dim)`."""
    present: Tensor | None
    """`(combinations, tokens)` booleans, false where shorter combinations are padded; `None` if none is."""
    always_visible: Tensor | None
    """`(combinations, tokens)` booleans: tokens that no sliding window hides; `None` if there are none."""
    dropout: Tensor | None
    """`(combinations, tokens)` probabilities; `None` outside training."""
    weight: Tensor | None = None
    """`(combinations, tokens)` factors on the shares of attention; `None` if all are 1."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "SiteState":
        """Return the same with other keys and values."""
        keys, values = (tuple([change(layer) for layer in layers]) for layers in (self.keys, self.values))
        return dataclasses.replace(self, keys=keys, values=values)


@dataclasses.dataclass
class CallState:
    """The state of one call of one stack."""

    sites: Mapping[str, SiteState]
    rows: Tensor | None
    """`(rows,)` index of each row's combination; `None` if all rows share the only one."""
    positions: Tensor | None
    """`(rows or 1, length)` positions of the queries, for sliding windows."""
    bias: tuple[Tensor, ...] | None = None
    """Per layer `(rows or 1, heads, length, tokens)`, the relative position bias of the self-attention's prompt."""
    tails: tuple[Tensor, Tensor] | None = None
    """Hidden states `(rows, hidden)` that predict the first text token, and which rows `(rows, 1)` have one."""
    cut_states: Layout | None = None
    """Where the text is in the encoder's states, if those that were given had been cut to it."""
    is_tuple_wanted: bool = False
    """Whether the caller asked the stack for a tuple."""
    gated: Mapping[str, list[Gated]] = dataclasses.field(default_factory=dict)
    """Prompts with a softmax of their own, by site."""
    call: Call | None = None
    """The forward it is of; `None` in a pass over virtual tokens alone."""
    masks: list[tuple[tuple[Any, ...], Any, Any]] = dataclasses.field(default_factory=list)
    """What a mask depends on, the text's mask, and the extended one: layers that agree in them share it."""
    visits: dict[int, int] = dataclasses.field(default_factory=dict)
    """How often this call has come to each module that several layers share."""


@dataclasses.dataclass
class Capture:
    """Records the keys and values of a pass over virtual tokens; `prior` is what that pass sees."""

    prior: CallState | None = None
    is_alone: bool = False
    """Whether keys and values are all that is wanted, and the attention's result is not."""
    keys: dict[Site, Tensor] = dataclasses.field(default_factory=dict)
    values: dict[Site, Tensor] = dataclasses.field(default_factory=dict)
    visits: dict[int, int] = dataclasses.field(default_factory=dict)
