"""The values of one forward: the placements for its rows, and what is known by the time it reaches the stacks."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.shapes import Bool, Float, Int, Shaped
from softprompt_zoo.sites.branches import Branch, BranchOfRows, branches_of
from softprompt_zoo.sites.layout import Layout, Slots
from softprompt_zoo.sites.selection import Combination, Part, Selection
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.text import Text

ATTRIBUTE = "_softprompt_decoding"
"""Attribute of a cache that holds the state of its text."""
CALL_KEYWORD = "softprompt_zoo_call"
"""Forward keyword that carries a `Call` from the model's forward (`model.forward`) to the hooks of its stacks."""


@dataclasses.dataclass
class Segment:
    """The keys and values of one combination at one site."""

    keys: list[Float[Tensor, "kv_heads tokens head_dim"]]
    """Per layer."""
    values: list[Float[Tensor, "kv_heads tokens value_dim"]]
    dropout: list[float]
    """Per token."""
    always_visible: list[bool]
    """Per token."""
    weight: list[float]
    """Per token."""
    scores: list[Float[Tensor, "kv_heads tokens 1"]] | None = None
    """Per layer, numbers added to the attention scores; `None` if there are none."""
    mask: Bool[Tensor, "rows tokens"] | None = None
    """Which of the tokens each row of the text sees; `None` if every row sees all."""

    @property
    def length(self) -> int:
        """Number of virtual tokens."""
        return len(self.dropout)

    @classmethod
    def of(cls, placement: Placement, site: str) -> "Segment | None":
        """Make the segment of one placement at one site; `None` if it has no tokens there, or gated ones."""
        tokens = placement.tokens.at(site)
        if tokens is None:
            return None
        keys = [layer for layer in tokens.keys if layer is not None]
        values = [layer for layer in tokens.values if layer is not None]
        scores = None if tokens.scores is None else [layer[..., None] for layer in tokens.scores]
        return cls(keys, values, *per_token(placement, keys[0].shape[1]), scores, placement.mask)

    def __add__(self, other: "Segment") -> "Segment":
        has_scores = self.scores is not None or other.scores is not None
        has_mask = self.mask is not None or other.mask is not None
        return Segment(
            _joined(self.keys, other.keys),
            _joined(self.values, other.values),
            self.dropout + other.dropout,
            self.always_visible + other.always_visible,
            self.weight + other.weight,
            _joined(self._every_score(), other._every_score()) if has_scores else None,
            _joined_rows(self.whole_mask(), other.whole_mask()) if has_mask else None,
        )

    def whole_mask(self) -> Bool[Tensor, "#rows tokens"]:
        """Return which of the tokens each row sees; a single row if all see all."""
        if self.mask is not None:
            return self.mask
        return torch.ones(1, self.length, dtype=torch.bool, device=self.keys[0].device)

    def _every_score(self) -> list[Float[Tensor, "kv_heads tokens 1"]]:
        """Return the numbers added to the attention scores, zeros if there are none."""
        return [key.new_zeros(*key.shape[:2], 1) for key in self.keys] if self.scores is None else self.scores


def _joined(
    first: list[Float[Tensor, "kv_heads tokens _"]], second: list[Float[Tensor, "kv_heads more _"]]
) -> list[Float[Tensor, "kv_heads tokens+more _"]]:
    return [torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)]


def _joined_rows(
    first: Bool[Tensor, "#rows tokens"], second: Bool[Tensor, "#rows more"]
) -> Bool[Tensor, "#rows tokens+more"]:
    rows = max(first.shape[0], second.shape[0])
    return torch.cat([first.expand(rows, -1), second.to(first.device).expand(rows, -1)], dim=1)


def per_token(placement: Placement, count: int) -> tuple[list[float], list[bool], list[float]]:
    """Return dropout, visibility and weight of each of a placement's tokens."""
    return [placement.dropout] * count, [placement.always_visible] * count, [placement.weight] * count


@dataclasses.dataclass
class Prefix:
    """The keys and values that a causal stack sees in front of the text."""

    segments: list[Segment | None]
    """One per combination."""
    states: list[dict[Part, Float[Tensor, "tokens hidden"]]]
    """Per combination, the last hidden states of each of its input-level prompts."""
    tails: list[Float[Tensor, " hidden"] | None]
    """Per combination, the last hidden state of the token right before the text; `None` if that place has keys
    and values, or a token of weight 0."""
    stacked: tuple[Any, ...] = ()
    """The segments in the form that attention takes, once converted, so that later steps need not do so again."""

    @classmethod
    def of(cls, segments: list[Segment | None]) -> "Prefix":
        """Return a prefix of keys and values without input-level prompts."""
        return cls(segments, [{} for _ in segments], [None] * len(segments))


@dataclasses.dataclass
class DecodingState:
    """The prompts of one text, as built for it."""

    era: object
    """The era of the prompts that made it: a new one starts with a change that texts already started must follow."""
    placements: dict[str, Placement] = dataclasses.field(default_factory=dict)
    """By the prompt's name."""
    prefix: tuple[tuple[Combination, ...], Int[Tensor, ""] | None, Prefix] | None = None
    """Computed keys and values, with their combinations and `reach`."""
    reach: Int[Tensor, ""] | None = None
    """The last position of the text when its prompts were computed, if their rotation depends on it."""
    ahead: int = 0
    """By how much positions exceeded text tokens at that time: those of the prompt, minus padding."""
    lent: dict[str, Any] = dataclasses.field(default_factory=dict)
    """A bank's prompts; they stay the same until the text is complete."""
    layout: Layout | None = None
    """Where an encoder's text was placed, for a `generate` that returns the encoder's states."""
    text_mask: Bool[Tensor, "rows length"] | None = None
    """Which positions were the text when it started, if a prompt needed it."""
    read: dict[str, Sequence[Placement]] = dataclasses.field(default_factory=dict)
    """By the prompt's name, the placements made from the text at that time: one for each row, or one for all."""

    def renew(self, era: object) -> "DecodingState":
        """Discard what was built if a new era has started."""
        if self.era is not era:
            self.era, self.placements, self.prefix = era, {}, None
        return self

    def stay_with(self, cache: Any) -> None:
        """Attach this state to the text's cache, from which the next forward takes it."""
        with contextlib.suppress(AttributeError):  # a class with slots
            setattr(cache, ATTRIBUTE, self)

    def __deepcopy__(self, memo: Any) -> "DecodingState":
        """Copy a cache's state: the copy continues independently with the same tensors, which never change."""
        return dataclasses.replace(self, placements=dict(self.placements), lent=dict(self.lent), read=dict(self.read))

    def __reduce__(self) -> Any:
        """Pickle nothing: a stored cache gets its prompts rebuilt."""
        return DecodingState, (None,)


@dataclasses.dataclass
class Trace:
    """Results that the stacks of one forward report back."""

    was_seen: bool = False
    """Whether a stack received the call."""
    layout: Layout | None = None
    """Where an encoder's text was placed, for returning its states to the user."""
    prefix: Prefix | None = None
    """The prefix that a causal stack saw, for the loss."""
    read: Mapping[str, Sequence[Placement]] = dataclasses.field(default_factory=dict)
    """By the prompt's name, the placements made from the text, for the stack after the one that read it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """The prompts of one forward, built once and shared by all stacks of the model."""

    selection: Selection
    placements: Mapping[Part, Placement]
    is_training: bool
    trace: Trace
    """Receives the results."""
    share_softmax: bool = False
    """Whether all tokens are keys and values that share the softmax of the text: none are at the input or gated."""
    first_index: Int[Tensor, " rows"] | None = None
    """Index of each row's first text token, if the loss needs its prediction."""
    slots: Slots | None = None
    """Virtual tokens in the middle of the text, if there are any."""
    heads: Sequence[nn.ModuleDict | None] = ()
    """Per combination, the trained task head of its rows, `None` for the model's own; empty if all use that."""
    decoding: DecodingState | None = None
    """What the text's prompts were turned into when it started, if there is a cache for it."""
    branches: Mapping[str, Branch] = dataclasses.field(default_factory=dict)
    """By the prompt's name, its addition to the output of attention."""
    readers: Mapping[str, Callable[[Text], Sequence[Placement]]] = dataclasses.field(default_factory=dict)
    """By the prompt's name, a function that makes its missing placements from the rows' text."""
    maps: Mapping[str, Callable[[Text], Float[Tensor, "rows length hidden"]]] = dataclasses.field(default_factory=dict)
    """By the prompt's name, a function that changes the embeddings of the rows' text."""
    text_mask: Bool[Tensor, "rows length"] | None = None
    """Which positions, other than padding, are the text; `None` for all."""

    @property
    def is_empty(self) -> bool:
        """Whether no row sees any prompt."""
        return self.slots is None and not any(self.selection.combinations)

    def for_batch(self, size: int) -> "Call":
        """Repeat the rows, which were checked against the user's batch, to match one expanded by beams or choices.

        Args:
            size: Rows of the batch.

        Returns:
            This call, or a copy with each row repeated in place.

        Raises:
            ValueError: If the batch is not a multiple of the rows.
        """
        rows = self.selection.rows
        if rows is None or rows.shape[0] == size:
            return self
        return dataclasses.replace(self, selection=self.selection.repeated(size))

    def per_row(self, values: Sequence[int | bool], device: torch.device) -> Shaped[Tensor, "#rows 1"]:
        """Spread a value per combination over the rows.

        Args:
            values: One value per combination.
            device: Where the result is needed.

        Returns:
            One value for each row, or one for all.
        """
        spread = torch.tensor(values, device=device)
        rows = self.selection.rows
        return (spread if rows is None else spread[rows.to(device)])[:, None]

    @property
    def placed(self) -> list[list[Placement]]:
        """The placements of each combination's prompts, in order."""
        return [[self.placements[part] for part in combination] for combination in self.selection.combinations]

    def branches_of_rows(self) -> list[BranchOfRows]:
        """Return the branches with the combinations that have them."""
        if not self.branches:
            return []
        names = [[part.name for part in combination] for combination in self.selection.combinations]
        return branches_of(self.branches, names, self.selection.rows)

    def input_tokens(self, combination: Combination) -> list[Float[Tensor, "_ hidden"]]:
        """Return the embeddings of a combination's input-level prompts, in order."""
        parts = [self.placements[part].tokens.at_input for part in combination]
        return [part for part in parts if part is not None]

    def pooled_rows(self, device: torch.device) -> Bool[Tensor, "#rows 1"] | None:
        """Return whether the head reads the first virtual token of each row; `None` if it does so for no row."""
        pooled = [_is_first_pooled(placements) for placements in self.placed]
        return self.per_row(pooled, device) if any(pooled) else None

    def ends_in_input_tokens(self) -> list[bool]:
        """Return for each combination whether it ends in a visible input prompt, which predicts the first label."""
        ends = [self.placements[parts[-1]] if parts else None for parts in self.selection.combinations]
        return [end is not None and end.tokens.at_input is not None and end.weight != 0 for end in ends]


def _is_first_pooled(placements: list[Placement]) -> bool:
    """Return whether a head reads the first token of the first input-level prompt."""
    inputs = [placement for placement in placements if placement.tokens.at_input is not None]
    return bool(inputs) and inputs[0].is_pooled
