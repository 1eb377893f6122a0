"""Branches: what prompts add to the output of a layer's attention, before its output projection.

A branch acts on the text, takes up no positions, and does not take part in the softmax. All branches of a row get the
same output, of text and virtual tokens, and are summed, so their order does not matter.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from softprompt_zoo.shapes import Bool, Float, Int
from softprompt_zoo.sites.site import AttentionLayer


class Branch(Protocol):
    """The addition of one prompt."""

    @property
    def is_trained(self) -> bool:
        """Whether gradients must reach its parameters."""

    def __call__(
        self,
        place: AttentionLayer,
        query: Float[Tensor, "rows heads length head_dim"],
        hidden: Float[Tensor, "rows length hidden"] | None,
        output: Float[Tensor, "rows length heads value_dim"],
    ) -> Float[Tensor, "rows length heads value_dim"] | None:
        """Return what to add in every row.

        Args:
            place: The layer.
            query: The queries as attention sees them, contiguous.
            hidden: The input of the attention module; `None` if it is not wanted.
            output: The output for text and virtual tokens. Not changed.

        Returns:
            The addition, with the shape and dtype of `output`; `None` to add nothing.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class BranchOfRows:
    """A branch and the combinations that have it."""

    branch: Branch
    combinations: Bool[Tensor, " combinations"] | None
    """Whether each combination has it; `None` if all do."""


def branches_of(
    branches: Mapping[str, Branch], combinations: Sequence[Sequence[str]], rows: Int[Tensor, " rows"] | None
) -> list[BranchOfRows]:
    """Find the rows of each branch.

    Args:
        branches: The branches of a call, by the prompt's name.
        combinations: The names of the prompts in each combination.
        rows: Index of each row's combination; `None` if all share one.

    Returns:
        The branches that some rows have.
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
    """Add branches to the output of a layer's attention.

    Args:
        branches: The branches of the call.
        rows: Index of each row's combination; `None` if all share one.
        place: The layer.
        query: The queries as attention sees them.
        hidden: The input of the attention module; `None` if no branch wants it.
        output: The output for text and virtual tokens. Not changed.

    Returns:
        The sum; in rows without a branch, `output`.
    """
    # If the query is a view of a tensor shared with the keys, torch's aot_eager gets the layout of its gradient wrong.
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
