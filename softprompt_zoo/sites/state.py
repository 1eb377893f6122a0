"""The state of a forward in one stack's attention: the prompts of each site, or a recording of virtual tokens."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from softprompt_zoo.shapes import Bool, Float, Int
from softprompt_zoo.sites.branches import BranchOfRows
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.layout import Layout
from softprompt_zoo.sites.site import AttentionLayer


@dataclasses.dataclass
class Gated:
    """One gated prompt of every combination at one site; the n-th prompt of a combination is in the n-th of these."""

    layers: tuple[
        tuple[
            Float[Tensor, "combinations kv_heads tokens head_dim"],
            Float[Tensor, "combinations kv_heads tokens value_dim"],
            Float[Tensor, " combinations #heads"],
        ]
        | None,
        ...,
    ]
    """Per layer, keys, values and gates, zero if a combination has no tokens; `None` for a layer where none has
    any."""
    present: Bool[Tensor, "combinations tokens"] | None
    """False for the padding of shorter prompts; `None` if there is none."""

    def map(self, change: Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]) -> "Gated":
        """Return the same with changed keys, values and gates."""
        layers = [None if own is None else (change(own[0]), change(own[1]), change(own[2])) for own in self.layers]
        return dataclasses.replace(self, layers=tuple(layers))


@dataclasses.dataclass
class SiteState:
    """The prompts that one site adds to the attention of its layers, for each distinct combination."""

    keys: tuple[Float[Tensor, "combinations kv_heads tokens head_dim"], ...]
    """Per layer."""
    values: tuple[Float[Tensor, "combinations kv_heads tokens value_dim"], ...]
    """Per layer."""
    present: Bool[Tensor, "combinations tokens"] | None
    """False for the padding of shorter combinations; `None` if there is none."""
    always_visible: Bool[Tensor, "combinations tokens"] | None
    """Tokens that no sliding window hides; `None` if there are none."""
    dropout: Float[Tensor, "combinations tokens"] | None
    """Probabilities; `None` outside training."""
    weight: Float[Tensor, "combinations tokens"] | None = None
    """Factors on the shares of attention; `None` if all are 1."""
    scores: tuple[Float[Tensor, "combinations kv_heads tokens 1"], ...] | None = None
    """Per layer, numbers added to the attention scores; `None` if there are none."""
    mask: Bool[Tensor, "combinations rows tokens"] | None = None
    """Which tokens of every possible combination each row of the text sees; `None` if every row sees all."""

    def map(self, change: Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]) -> "SiteState":
        """Return the same with changed keys, values and scores."""
        keys, values = (tuple([change(layer) for layer in layers]) for layers in (self.keys, self.values))
        scores = None if self.scores is None else tuple([change(layer) for layer in self.scores])
        return dataclasses.replace(self, keys=keys, values=values, scores=scores)


@dataclasses.dataclass
class CallState:
    """The state of one call of one stack."""

    sites: Mapping[str, SiteState]
    rows: Int[Tensor, " rows"] | None
    """Index of each row's combination; `None` if all rows share the only one."""
    positions: Int[Tensor, "#rows length"] | None
    """Positions of the queries, for sliding windows."""
    bias: tuple[Float[Tensor, "#rows heads length tokens"], ...] | None = None
    """Per layer, the relative position bias of the self-attention's prompt."""
    tails: tuple[Float[Tensor, "rows hidden"], Bool[Tensor, "rows 1"]] | None = None
    """Hidden states that predict the first text token, and which rows have one."""
    cut_states: Layout | None = None
    """Where the text is in the encoder's states, if the given ones were cut to it."""
    is_tuple_wanted: bool = False
    """Whether the caller asked the stack for a tuple."""
    gated: Mapping[str, list[Gated]] = dataclasses.field(default_factory=dict)
    """Prompts with their own softmax, by site."""
    branches: Sequence[BranchOfRows] = ()
    """Additions of prompts to the output of attention."""
    hidden: Float[Tensor, "rows length hidden"] | None = None
    """Input of the running attention module, if a branch needs it."""
    call: Call | None = None
    """The forward it belongs to; `None` in a pass over only virtual tokens."""
    masks: list[tuple[tuple[Any, ...], Any, Any]] = dataclasses.field(default_factory=list)
    """What a mask depends on, the text's mask, and the extended one, which layers with the same first two share."""
    visits: dict[int, int] = dataclasses.field(default_factory=dict)
    """How often this call has reached each module that several layers share."""
    is_in_order: bool = False
    """Whether each row sees the combination with its own index, so that no lookup is needed."""

    def acts_beside(self, site: str) -> bool:
        """Return whether prompts that take up no positions act on a site's text."""
        return bool(self.branches or self.gated[site])


@dataclasses.dataclass
class KeyValueRecording:
    """Records the keys and values of a pass over virtual tokens; `prior` is what that pass sees."""

    prior: CallState | None = None
    is_alone: bool = False
    """Whether only keys and values are needed, not the attention's result."""
    keys: dict[AttentionLayer, Float[Tensor, "rows kv_heads length head_dim"]] = dataclasses.field(default_factory=dict)
    values: dict[AttentionLayer, Float[Tensor, "rows kv_heads length value_dim"]] = dataclasses.field(
        default_factory=dict
    )
    visits: dict[int, int] = dataclasses.field(default_factory=dict)
