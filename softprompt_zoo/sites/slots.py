"""Virtual tokens in the middle of the text: they replace the embeddings at the places the user chose."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from softprompt_zoo.sites.arrange import Selection
from softprompt_zoo.tokens import InputTokens, Placement


@dataclasses.dataclass(frozen=True)
class Slots:
    """Where virtual tokens stand in the text, and which."""

    index: Tensor
    """`(rows, length)`: which virtual token of the row's prompts stands there, -1 for text."""
    tables: tuple[Tensor | None, ...]
    """Per combination its virtual tokens at the input embeddings `(tokens, hidden)`, one prompt behind the other."""

    def fill(self, embeddings: Tensor, rows: Tensor | None, past: int | Tensor) -> Tensor:
        """Put the virtual tokens into their places.

        Args:
            embeddings: Text embeddings `(rows, length, hidden)`. Not changed.
            rows: `(rows,)` index of each row's combination; `None` if all share one.
            past: Text tokens in the cache, behind which this text stands.

        Returns:
            Embeddings of the same shape; gradients flow to both.
        """
        count, length = embeddings.shape[:2]
        index = self.index.to(embeddings.device)
        if count != index.shape[0]:  # beams, or several return sequences
            index = index.repeat_interleave(count // index.shape[0], dim=0)
        columns = torch.arange(length, device=embeddings.device) + past
        here = index[:, columns.clamp(max=index.shape[1] - 1)]
        here = torch.where(columns < index.shape[1], here, -1)
        longest = max(0 if table is None else table.shape[0] for table in self.tables)
        if not longest:
            return embeddings
        empty = embeddings.new_zeros(longest, embeddings.shape[2])
        parts = [empty[:0] if table is None else table.to(empty) for table in self.tables]
        stacked = torch.cat([torch.cat([part, empty[len(part) :]]) for part in parts])
        offset = 0 if rows is None else (rows.to(index.device) * longest)[:, None]
        chosen = stacked[here.clamp(min=0) + offset]
        return torch.where((here >= 0)[..., None], chosen, embeddings)


def take_slots(selection: Selection, placements: Mapping[str, Placement], index: Tensor) -> tuple[Selection, Slots]:
    """Take the input-level prompts out of the combinations, for they stand in the text and not in front of it.

    Args:
        selection: Which rows see which combination.
        placements: What is placed, by prompt.
        index: `(rows, length)` integers, as `zoo.encode` makes them.

    Returns:
        The selection without them, and the slots.

    Raises:
        ValueError: If the index has another shape, or names a virtual token that the row's prompts do not have.
    """
    if index.ndim != 2 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(
            f"soft_slots has shape {tuple(index.shape)} and dtype {index.dtype}; expected integers of shape "
            "(rows, length): a virtual token's index, -1 for text"
        )
    tables: list[Tensor | None] = []
    rest = []
    for combination in selection.combinations:
        tokens = [placements[name].tokens for name in combination]
        parts = [part.embeddings for part in tokens if isinstance(part, InputTokens)]
        tables.append(torch.cat(parts) if parts else None)
        rest.append(tuple(n for n in combination if not isinstance(placements[n].tokens, InputTokens)))
    if not torch.compiler.is_compiling():
        _check_range(selection, tables, index)
    return Selection(tuple(rest), selection.rows), Slots(index, tuple(tables))


def _check_range(selection: Selection, tables: list[Tensor | None], index: Tensor) -> None:
    counts = torch.tensor([0 if table is None else table.shape[0] for table in tables])
    rows = torch.zeros(index.shape[0], dtype=torch.long) if selection.rows is None else selection.rows.cpu()
    if rows.shape[0] != index.shape[0]:
        raise ValueError(f"soft_slots has {index.shape[0]} rows, prompts has {rows.shape[0]}; give one for each row")
    largest = index.max(dim=1).values.cpu()
    wrong = (largest >= counts[rows]).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"row {row} of soft_slots uses virtual token {int(largest[row])}, but its prompts have "
            f"{int(counts[rows[row]])} at the input embeddings; use fewer slots or more virtual tokens"
        )
