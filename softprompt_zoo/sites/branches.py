"""Branches: what prompts add to the output of a layer's attention, in front of its output projection.

A branch acts on the text, takes up no positions, and has no part in the softmax. Those of a row are given the same
output, of the text and of virtual tokens, and summed, so their order does not matter.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from softprompt_zoo.shapes import Bool, Float, Int
from softprompt_zoo.sites.site import AttentionLayer


class Branch(Protocol):
    """What one prompt adds."""

    @property
    def is_trained(self) -> bool:
        """Whether gradients are to reach what it is made of."""

    def __call__(
        self,
        place: AttentionLayer,
        query: Float[Tensor, "rows heads length head_dim"],
        hidden: Float[Tensor, "rows length hidden"] | None,
        output: Float[Tensor, "rows length heads value_dim"],
    ) -> Float[Tensor, "rows length heads value_dim"] | None:
        """Return what is added in every row.

        Args:
            place: The layer.
            query: As attention sees it, contiguous.
            hidden: What the attention module reads; `None` if it is not wanted.
            output: Of text and virtual tokens. Not changed.

        Returns:
            That, of the shape and dtype of `output`; `None` for nothing.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class BranchOfRows:
    """A branch and the rows that have it."""

    branch: Branch
    combinations: Bool[Tensor, " combinations"] | None
    """Whether a combination has it; `None` if all have."""


def branches_of(
    branches: Mapping[str, Branch], combinations: Sequence[Sequence[str]], rows: Int[Tensor, " rows"] | None
) -> list[BranchOfRows]:
    """Find the rows of each branch.

    Args:
        branches: Those of a call, by the prompt's name.
        combinations: The names of the prompts of each combination.
        rows: Index of each row's combination; `None` if all share one.

    Returns:
        Those that rows have.
    """
    found = []
    for name, branch in branches.items():
        has = [name in names for names in combinations]
        device = None if rows is None else rows.device
        if any(has):
            found.append(BranchOfRows(branch, None if all(has) else torch.tensor(has, device=device)))
    return found


def add_branches(
    branches: Sequence[BranchOfRows],
    rows: Int[Tensor, " rows"] | None,
    place: AttentionLayer,
    query: Float[Tensor, "rows heads length head_dim"],
    hidden: Float[Tensor, "rows length hidden"] | None,
    output: Float[Tensor, "rows length heads value_dim"],
) -> Float[Tensor, "rows length heads value_dim"]:
    """Add what branches give to a layer's attention.

    Args:
        branches: Those of the call.
        rows: Index of each row's combination; `None` if all share one.
        place: The layer.
        query: As attention sees it.
        hidden: What the attention module reads; `None` if no branch wants it.
        output: Of text and virtual tokens. Not changed.

    Returns:
        The sum; in rows without a branch, `output`.
    """
    # A query that is a view of what made keys, too, has gradients whose layout torch's aot_eager takes wrongly.
    own_query, total = query.contiguous(), output
    for own in branches:
        added = own.branch(place, own_query, hidden, output)
        if added is None:
            continue
        if own.combinations is not None and rows is not None:
            seen = own.combinations[rows].to(output.device)
            added = torch.where(seen[:, None, None, None], added, 0)
        total = total + added
    return total
