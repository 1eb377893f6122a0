"""The values of one forward: what is placed for its rows, and what is known of it by the time it reaches the stacks."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.shapes import Bool, Float, Int, Shaped
from softprompt_zoo.sites.branches import Branch, BranchOfRows, branches_of
from softprompt_zoo.sites.layout import Layout, Slots
from softprompt_zoo.sites.selection import Combination, Part, Selection, check_rows
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.text import Text

ATTRIBUTE = "_softprompt_decoding"
"""Attribute of a cache that holds the state of its text."""


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
    """Per layer, what is added to the scores of attention; `None` for nothing."""
    mask: Bool[Tensor, "rows tokens"] | None = None
    """Which of the tokens each row of the text sees; `None` if every row sees all."""

    @property
    def length(self) -> int:
        """Virtual tokens."""
        return len(self.dropout)

    @classmethod
    def of(cls, placement: Placement, site: str) -> "Segment | None":
        """Take one placement's tokens at one site; `None` if it has none there, or gated ones."""
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
        """Return which of the tokens each row sees, where all see all a single row."""
        if self.mask is not None:
            return self.mask
        return torch.ones(1, self.length, dtype=torch.bool, device=self.keys[0].device)

    def _every_score(self) -> list[Float[Tensor, "kv_heads tokens 1"]]:
        """Return what is added to the scores of attention, zeros for nothing."""
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
    """What a causal stack sees in front of the text."""

    segments: list[Segment | None]
    """One per combination."""
    states: list[dict[Part, Float[Tensor, "tokens hidden"]]]
    """Per combination, the last hidden states of each of its input-level prompts."""
    tails: list[Float[Tensor, " hidden"] | None]
    """Per combination, the last hidden state of the token right in front of the text; `None` where keys and
    values stand there, or tokens of the weight 0."""
    stacked: tuple[Any, ...] = ()
    """The segments in the form that attention takes, once they were brought into it: a step need not do so again."""

    @classmethod
    def of(cls, segments: list[Segment | None]) -> "Prefix":
        """Return keys and values that no input-level prompt is among."""
        return cls(segments, [{} for _ in segments], [None] * len(segments))


@dataclasses.dataclass
class DecodingState:
    """The prompts of one text, as they were built for it."""

    era: object
    """Of the prompts that made it: another one after a change that texts which were begun are to follow."""
    placements: dict[str, Placement] = dataclasses.field(default_factory=dict)
    """By the prompt's name."""
    prefix: tuple[tuple[Combination, ...], Int[Tensor, ""] | None, Prefix] | None = None
    """Computed keys and values, with the combinations and the `reach` that they are of."""
    reach: Int[Tensor, ""] | None = None
    """The last position of the text when its prompts were computed, where their rotation depends on it."""
    ahead: int = 0
    """How many positions more than tokens of text there were then: the prompt's, less padding."""
    lent: dict[str, Any] = dataclasses.field(default_factory=dict)
    """A bank's prompts; they stay as they are until the text is written."""
    layout: Layout | None = None
    """Where an encoder's text went, for a `generate` that returns the encoder's states."""
    text_mask: Bool[Tensor, "rows length"] | None = None
    """Which positions were the text when it was begun, if a prompt wanted to know."""
    read: dict[str, Sequence[Placement]] = dataclasses.field(default_factory=dict)
    """By the prompt's name, what was made of the text then: for each of its rows, or for all of them."""

    def renew(self, era: object) -> "DecodingState":
        """Let go of what was built, if another era has begun."""
        if self.era is not era:
            self.era, self.placements, self.prefix = era, {}, None
        return self

    def stay_with(self, cache: Any) -> None:
        """Stay with the cache of the text, from which the next forward takes this state."""
        with contextlib.suppress(AttributeError):  # a class with slots
            setattr(cache, ATTRIBUTE, self)

    def __deepcopy__(self, memo: Any) -> "DecodingState":
        """Copy a cache's state: the copy goes on from here by itself, with the same tensors, which never change."""
        return dataclasses.replace(self, placements=dict(self.placements), lent=dict(self.lent), read=dict(self.read))

    def __reduce__(self) -> Any:
        """Pickle nothing of it: a cache that was stored finds its prompts anew."""
        return DecodingState, (None,)


@dataclasses.dataclass
class Trace:
    """What comes back from the stacks of one forward."""

    was_seen: bool = False
    """Whether a stack has got the call."""
    layout: Layout | None = None
    """Where an encoder's text went, for whoever shows its states to the user."""
    prefix: Prefix | None = None
    """What a causal stack saw in front of the text, for the loss."""
    read: Mapping[str, Sequence[Placement]] = dataclasses.field(default_factory=dict)
    """What was made of the text, by the prompt's name, for the stack after the one that read it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """The prompts of one forward, built once and shared by all stacks of the model."""

    selection: Selection
    placements: Mapping[Part, Placement]
    is_training: bool
    trace: Trace
    """What comes back."""
    share_softmax: bool = False
    """Whether all tokens are keys and values that share the softmax of the text: none at the input, none gated."""
    first_index: Int[Tensor, " rows"] | None = None
    """Index of each row's first text token, if the loss wants its prediction."""
    slots: Slots | None = None
    """Virtual tokens in the middle of the text, if there are any."""
    heads: Sequence[nn.ModuleDict | None] = ()
    """Per combination the trained task head that its rows use; `None` for the model's own, empty if all use it."""
    decoding: DecodingState | None = None
    """What the text's prompts were built into when it was begun, for whoever has a cache of it."""
    branches: Mapping[str, Branch] = dataclasses.field(default_factory=dict)
    """By the prompt's name, what is added beside attention."""
    readers: Mapping[str, Callable[[Text], Sequence[Placement]]] = dataclasses.field(default_factory=dict)
    """By the prompt's name, what makes the placements that are still missing, of the rows' text."""
    maps: Mapping[str, Callable[[Text], Float[Tensor, "rows length hidden"]]] = dataclasses.field(default_factory=dict)
    """By the prompt's name, what changes the embeddings of the rows' text."""
    text_mask: Bool[Tensor, "rows length"] | None = None
    """Which positions are the text, of those that are no padding; `None` for all."""

    @property
    def is_empty(self) -> bool:
        """Whether no row sees anything."""
        return self.slots is None and not any(self.selection.combinations)

    def for_batch(self, size: int, may_repeat: bool) -> "Call":
        """Repeat the rows to a batch that beams, choices or several return sequences have widened.

        Args:
            size: Rows of the batch.
            may_repeat: Whether the rows were checked against the user's batch already.

        Returns:
            This call, or a copy with the rows repeated one after the other.

        Raises:
            ValueError: If the batch has other rows.
        """
        rows = self.selection.rows
        if rows is None or rows.shape[0] == size:
            return self
        if not may_repeat:
            check_rows(rows.shape[0], size)
        return dataclasses.replace(self, selection=self.selection.repeated(size))

    def per_row(self, values: Sequence[int | bool], device: torch.device) -> Shaped[Tensor, "#rows 1"]:
        """Spread a value per combination over the rows.

        Args:
            values: One value per combination.
            device: Where the result is needed.

        Returns:
            One for each row, or one for all.
        """
        spread = torch.tensor(values, device=device)
        rows = self.selection.rows
        return (spread if rows is None else spread[rows.to(device)])[:, None]

    @property
    def placed(self) -> list[list[Placement]]:
        """What is placed of the prompts of each combination, in order."""
        return [[self.placements[part] for part in combination] for combination in self.selection.combinations]

    def branches_of_rows(self) -> list[BranchOfRows]:
        """Return what is added beside attention, with the rows that have it."""
        if not self.branches:
            return []
        names = [[part.name for part in combination] for combination in self.selection.combinations]
        return branches_of(self.branches, names, self.selection.rows)

    def input_tokens(self, combination: Combination) -> list[Float[Tensor, "_ hidden"]]:
        """Return the embeddings of a combination's input-level prompts, in order."""
        parts = [self.placements[part].tokens.at_input for part in combination]
        return [part for part in parts if part is not None]

    def pooled_rows(self, device: torch.device) -> Bool[Tensor, "#rows 1"] | None:
        """Return whether the head reads the first virtual token of a row; `None` if of no row."""
        pooled = [_is_first_pooled(placements) for placements in self.placed]
        return self.per_row(pooled, device) if any(pooled) else None

    def ends_in_input_tokens(self) -> list[bool]:
        """Return for each combination whether a seen input-level prompt is its last, which predicts the first label."""
        ends = [self.placements[parts[-1]] if parts else None for parts in self.selection.combinations]
        return [end is not None and end.tokens.at_input is not None and end.weight != 0 for end in ends]


def _is_first_pooled(placements: list[Placement]) -> bool:
    """Return whether a head reads the first token of the first input-level prompt."""
    inputs = [placement for placement in placements if placement.tokens.at_input is not None]
    return bool(inputs) and inputs[0].is_pooled
