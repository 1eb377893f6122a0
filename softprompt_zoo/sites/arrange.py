"""Several prompts on one model, another one for every row: which prompts a call shows to which row.

A *combination* is the ordered tuple of prompts that one row sees; rows that share one share its tokens,
so nothing is computed twice. In a combination the tokens stand one prompt behind the other.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt_zoo.errors import UnknownPromptError
from softprompt_zoo.sites.attention import SiteState
from softprompt_zoo.sites.input_embeddings import Layout
from softprompt_zoo.tokens import InputTokens, LayerTokens, Placement

if TYPE_CHECKING:
    from softprompt_zoo.sites.decoding_state import DecodingState
    from softprompt_zoo.sites.shared_pass import Prefix
    from softprompt_zoo.sites.slots import Slots

Combination = tuple[str, ...]


@dataclasses.dataclass
class Selection:
    """Which rows see which combination."""

    combinations: tuple[Combination, ...]
    """The distinct combinations of the batch."""
    rows: Tensor | None
    """`(rows,)` index into `combinations`; `None` if all rows share the only one."""

    @property
    def names(self) -> list[str]:
        """Every prompt of the call, once."""
        return list(dict.fromkeys(name for combination in self.combinations for name in combination))


@dataclasses.dataclass
class Call:
    """The prompts of one forward, built once and shared by all stacks of the model."""

    selection: Selection
    placements: Mapping[str, Placement]
    is_training: bool
    first_index: Tensor | None = None
    """`(rows,)` index of each row's first text token, if the loss wants its prediction."""
    layout: Layout | None = None
    """Where an encoder's text went, for whoever shows its states to the user."""
    slots: "Slots | None" = None
    """Virtual tokens in the middle of the text, if there are any."""
    heads: Sequence[nn.ModuleDict | None] = ()
    """Per combination the trained task head that its rows use; `None` for the model's own."""
    was_seen: bool = False
    """Whether a stack has got the call."""
    decoding: "DecodingState | None" = None
    """What the text's prompts were built into when it was begun, for whoever has a cache of it."""
    prefix: "Prefix | None" = None
    """What a causal stack saw in front of the text; left here by the stack for the loss."""

    @property
    def is_empty(self) -> bool:
        """Whether no row sees anything."""
        return not self.selection.names and self.slots is None

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
        if size % rows.shape[0] or not may_repeat:
            raise ValueError(
                f"prompts has {rows.shape[0]} entries for a batch of {size} rows; give one entry per row: "
                "a prompt's name, a list of names, or None"
            )
        repeated = Selection(self.selection.combinations, rows.repeat_interleave(size // rows.shape[0]))
        return dataclasses.replace(self, selection=repeated)

    def per_row(self, values: Sequence[int | bool], device: torch.device) -> Tensor:
        """Spread a value per combination over the rows.

        Args:
            values: One value per combination.
            device: Where the result is needed.

        Returns:
            `(rows or 1, 1)`.
        """
        spread = torch.tensor(values, device=device)
        rows = self.selection.rows
        return (spread if rows is None else spread[rows.to(device)])[:, None]

    def input_tokens(self, combination: Combination) -> list[Tensor]:
        """Return the embeddings of a combination's input-level prompts, in order."""
        tokens = [self.placements[name].tokens for name in combination]
        return [part.embeddings for part in tokens if isinstance(part, InputTokens)]

    def pooled_rows(self, device: torch.device) -> Tensor | None:
        """Return `(rows or 1, 1)`, whether the head reads the first virtual token of a row; `None` if of no row."""
        pooled = []
        for combination in self.selection.combinations:
            placements = [self.placements[name] for name in combination]
            inputs = [placement for placement in placements if isinstance(placement.tokens, InputTokens)]
            pooled.append(bool(inputs) and inputs[0].is_pooled)
        return self.per_row(pooled, device) if any(pooled) else None

    def ends_in_input_tokens(self) -> list[bool]:
        """Say for each combination whether a seen input-level prompt is its last, which predicts the first label."""
        ends = [self.placements[parts[-1]] if parts else None for parts in self.selection.combinations]
        return [end is not None and isinstance(end.tokens, InputTokens) and end.weight != 0 for end in ends]


@dataclasses.dataclass
class Entry:
    """The keys and values of one combination at one site."""

    keys: list[Tensor]
    """Per layer `(kv_heads, tokens, head_dim)`."""
    values: list[Tensor]
    dropout: list[float]
    """Per token."""
    always_visible: list[bool]
    """Per token."""
    weight: list[float]
    """Per token."""

    @property
    def length(self) -> int:
        """Virtual tokens."""
        return len(self.dropout)

    @classmethod
    def of(cls, placement: Placement, site: str) -> "Entry | None":
        """Take one placement's tokens at one site; `None` if it has none there, or gated ones."""
        tokens = placement.tokens
        if not isinstance(tokens, LayerTokens) or site not in tokens.sites:
            return None
        if tokens.sites[site].gates is not None:
            return None
        keys = [layer for layer in tokens.sites[site].keys if layer is not None]
        values = [layer for layer in tokens.sites[site].values if layer is not None]
        return cls(keys, values, *per_token(placement, keys[0].shape[1]))

    def __add__(self, other: "Entry") -> "Entry":
        return Entry(
            [torch.cat(pair, dim=1) for pair in zip(self.keys, other.keys, strict=True)],
            [torch.cat(pair, dim=1) for pair in zip(self.values, other.values, strict=True)],
            self.dropout + other.dropout,
            self.always_visible + other.always_visible,
            self.weight + other.weight,
        )


def per_token(placement: Placement, count: int) -> tuple[list[float], list[bool], list[float]]:
    """Return dropout, visibility and weight of each of a placement's tokens."""
    return [placement.dropout] * count, [placement.always_visible] * count, [placement.weight] * count


def join(entries: Sequence[Entry | None]) -> Entry | None:
    """Put entries one behind the other; `None` entries are empty."""
    joined = None
    for entry in entries:
        if entry is not None:
            joined = entry if joined is None else joined + entry
    return joined


def lengths(entries: Sequence[Entry | None]) -> list[int]:
    """Count the virtual tokens of each entry."""
    return [0 if entry is None else entry.length for entry in entries]


def token_counts(call: Call, site: str) -> list[int]:
    """Count the virtual tokens that each combination has in front of a causal stack's text.

    Args:
        call: The prompts of this forward.
        site: The stack's self-attention.

    Returns:
        One count per combination.
    """

    def count(placement: Placement) -> int:
        if isinstance(placement.tokens, InputTokens):
            return placement.tokens.embeddings.shape[0]
        return lengths([Entry.of(placement, site)])[0]

    return [sum([count(call.placements[name]) for name in names]) for names in call.selection.combinations]


def site_state(entries: Sequence[Entry | None], is_training: bool) -> SiteState | None:
    """Stack the entries of all combinations, padded to the longest.

    Args:
        entries: One per combination.
        is_training: Whether dropout acts.

    Returns:
        The state of a site, or `None` if no combination has tokens there.
    """
    full = [entry for entry in entries if entry is not None]
    if not full:
        return None
    counts = lengths(entries)
    longest = max(counts)
    device = full[0].keys[0].device

    def stack(kind: str) -> tuple[Tensor, ...]:
        if len(entries) == 1:  # a view: stacking would copy every layer in every step
            return tuple(layer[None] for layer in getattr(full[0], kind))
        columns = []
        for layer, template in enumerate(getattr(full[0], kind)):
            empty = template.new_zeros(template.shape[0], longest, template.shape[2])
            rows = [empty if e is None else _pad(getattr(e, kind)[layer], longest) for e in entries]
            columns.append(torch.stack(rows))
        return tuple(columns)

    def column(kind: str, filler: Any) -> Tensor:
        rows = [[] if e is None else getattr(e, kind) for e in entries]
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)

    ragged = min(counts) < longest
    present = torch.arange(longest, device=device) < torch.tensor(counts, device=device)[:, None]
    return SiteState(
        keys=stack("keys"),
        values=stack("values"),
        present=present if ragged else None,
        always_visible=column("always_visible", False) if any(any(e.always_visible) for e in full) else None,
        dropout=column("dropout", 0.0) if is_training and any(any(e.dropout) for e in full) else None,
        weight=column("weight", 1.0) if any(any([w != 1.0 for w in e.weight]) for e in full) else None,
    )


def stack_embeddings(call: Call) -> tuple[Tensor, Tensor | None, list[int]] | None:
    """Stack the input-level tokens of all combinations, padded to the longest.

    Args:
        call: The prompts of this forward.

    Returns:
        Embeddings `(combinations, tokens, hidden)`, which of them are present (`None` for all), and the
        count per combination; `None` if there are no input-level prompts.
    """
    parts = [call.input_tokens(combination) for combination in call.selection.combinations]
    template = next((part[0] for part in parts if part), None)
    if template is None:
        return None
    joined = [torch.cat(part) if part else template.new_zeros(0, template.shape[1]) for part in parts]
    counts = [len(part) for part in joined]
    longest = max(counts)
    stacked = torch.stack([_pad(part, longest) for part in joined])
    if min(counts) == longest:
        return stacked, None, counts
    present = torch.arange(longest, device=stacked.device) < torch.tensor(counts, device=stacked.device)[:, None]
    return stacked, present, counts


@dataclasses.dataclass(frozen=True)
class Lent:
    """What a model's bank has of the prompts that a call names."""

    names: Collection[str]
    """Prompts that the bank has."""
    address: str
    """The bank, for messages."""


def select(prompts: Any, names: Sequence[str], active: Combination, lent: Lent | None = None) -> Selection:
    """Read the `prompts` argument of `forward` and `generate`.

    Args:
        prompts: `None` for the active prompts in every row; a name for every row; or one entry per row: a
            name, a list of names, `None` for a bare row. An integer tensor indexes `names`, -1 is a bare row.
        names: The prompts of the model, in the order they were added.
        active: The active combination.
        lent: What the model's bank has of the names; `None` without a bank.

    Returns:
        The distinct combinations and the rows' index into them.

    Raises:
        UnknownPromptError: If a name or index is not there.
        TypeError: If an entry is none of the above.
    """
    if prompts is None:
        return Selection((active,), None)
    if isinstance(prompts, str):
        return Selection((_combination(prompts, names, 0, lent),), None)
    if isinstance(prompts, Tensor):
        return _select_by_index(prompts, names)
    if not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts is {type(prompts).__name__}; expected one entry per row (a prompt's name, a list of names, or "
            "None) or an integer tensor"
        )
    wanted = [_combination(entry, names, row, lent) for row, entry in enumerate(prompts)]
    distinct = tuple(dict.fromkeys(wanted))
    if len(distinct) == 1:
        return Selection(distinct, torch.zeros(len(wanted), dtype=torch.long))
    return Selection(distinct, torch.tensor([distinct.index(entry) for entry in wanted]))


def _select_by_index(prompts: Tensor, names: Sequence[str]) -> Selection:
    if prompts.ndim != 1 or prompts.is_floating_point() or prompts.dtype == torch.bool:
        raise TypeError(
            f"prompts is a tensor of shape {tuple(prompts.shape)} and dtype {prompts.dtype}; "
            "expected integers of shape (rows,): indices of model.prompts, -1 for a bare row"
        )
    if torch.compiler.is_compiling():
        # Values are unknown while tracing: keep every prompt ready, bare rows last.
        everything = (*((name,) for name in names), ())
        return Selection(everything, torch.where(prompts < 0, len(names), prompts).long())
    indices = prompts.tolist()
    wrong = next((index for index in indices if not -1 <= index < len(names)), None)
    if wrong is not None:
        raise UnknownPromptError(
            f"prompts has index {wrong}; the model has {len(names)} prompts, so -1 to {len(names) - 1}"
        )
    return select([None if index < 0 else names[index] for index in indices], names, ())


def _combination(entry: Any, names: Sequence[str], row: int, lent: Lent | None) -> Combination:
    return check_combination(() if entry is None else entry, names, f"prompts[{row}]", lent)


def check_combination(parts: Any, names: Sequence[str], what: str, lent: Lent | None = None) -> Combination:
    """Check that prompts can stand together.

    Args:
        parts: Their names, in order; a string is one name.
        names: The prompts of the model.
        what: What is checked, for the message.
        lent: What the model's bank has of the names; `None` without a bank.

    Returns:
        The combination.

    Raises:
        TypeError: If `parts` is neither a name nor a list of names.
        UnknownPromptError: If one is not there.
        ValueError: If one stands twice.
    """
    if isinstance(parts, str):
        parts = (parts,)
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise TypeError(f"{what} is {parts!r}; expected a prompt's name, a list of names, or None")
    borrowed = () if lent is None else lent.names
    unknown = next((part for part in parts if part not in names and part not in borrowed), None)
    if unknown is not None:
        there = ", ".join(map(repr, names)) or "none"
        bank = "" if lent is None else f", and its bank {lent.address} has no prompt of that name"
        raise UnknownPromptError(f"no prompt {unknown!r}, named in {what}; the model has {there}{bank}")
    if len(set(parts)) < len(parts):
        raise ValueError(f"{what} is {parts!r}; each prompt may stand in it once")
    return tuple(parts)


def _pad(tensor: Tensor, length: int) -> Tensor:
    """Pad the second-to-last axis, the tokens, with zeros."""
    return functional.pad(tensor, (0, 0, 0, length - tensor.shape[-2])) if tensor.shape[-2] < length else tensor
