"""Virtual tokens inside the text: they replace the embeddings at the places that the user chose."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float, Int
from softprompt_zoo.sites.batch import stack_padded
from softprompt_zoo.sites.layout import Slots
from softprompt_zoo.sites.position_table import Past
from softprompt_zoo.sites.positions import plain_mask, text_positions
from softprompt_zoo.sites.selection import Combination, Part, Selection, times_repeated
from softprompt_zoo.sites.soft_slots_argument import check_slots
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.tokens.placement import Placement


def fill_slots(
    slots: Slots,
    embeddings: Float[Tensor, "rows length hidden"],
    rows: Int[Tensor, " rows"] | None,
    past: Past,
) -> Float[Tensor, "rows length hidden"]:
    """Put the virtual tokens in their places.

    Args:
        slots: The virtual tokens and their places.
        embeddings: Embeddings of the text. Not changed.
        rows: Index of each row's combination; `None` if all share one.
        past: Text tokens in the cache, before this text.

    Returns:
        Embeddings of the same shape; gradients flow to both.

    Raises:
        ValueError: If the index does not have the text's shape.
    """
    count, length = embeddings.shape[:2]
    if not torch.compiler.is_compiling() and not slots.in_generate and isinstance(past, int):
        check_slots(slots.index, count, past + length, past)
    here = _index_of_text(slots.index.to(device=embeddings.device, dtype=torch.long), count, length, past)
    table = slots.table.to(embeddings)
    offset = 0 if rows is None else (rows.to(here.device) * table.shape[1])[:, None]
    chosen = table.flatten(0, 1)[here.clamp(min=0) + offset]
    return torch.where((here >= 0)[..., None], chosen, embeddings)


def _index_of_text(
    index: Int[Tensor, "given_rows given_length"], rows: int, length: int, past: Past
) -> Int[Tensor, "{rows} {length}"]:
    """Return the index of the virtual token at each place of this call's text, -1 for text and generated tokens."""
    if rows != index.shape[0]:  # beams, or several return sequences
        index = index.repeat_interleave(times_repeated(index.shape[0], rows), dim=0)
    columns = torch.arange(length, device=index.device) + past
    here = index[:, columns.clamp(max=index.shape[1] - 1)]
    return torch.where(columns < index.shape[1], here, -1)


def keep_positions(stack: Stack, kwargs: dict[str, Any], length: int) -> dict[str, Any]:
    """Add the text's positions for an encoder that derives them from its ids, which slots remove.

    Args:
        stack: The stack.
        kwargs: Its arguments. Not changed.
        length: Text tokens.

    Returns:
        The arguments, with `position_ids` if the stack's positions begin after a padding index.
    """
    mask = plain_mask(kwargs)
    counts_ids = stack.position_start and stack.takes_position_ids
    if not counts_ids or kwargs.get("position_ids") is not None or mask is None:
        return kwargs
    positions = text_positions(kwargs, length, 0, mask.device) + stack.position_start
    return {**kwargs, "position_ids": positions.masked_fill(mask == 0, stack.position_start - 1)}


def take_slots(
    selection: Selection,
    placements: Mapping[Part, Placement],
    index: Int[Tensor, "rows length"],
    in_generate: bool,
    is_checked: bool,
) -> tuple[Selection, Slots | None]:
    """Remove the input-level prompts from the combinations, as they are inside the text rather than before it.

    Args:
        selection: Which rows see which combination.
        placements: The placements, by prompt.
        index: The slots, as made by `zoo.encode`.
        in_generate: Whether `generate` runs the forward.
        is_checked: Whether the values were checked in an earlier step.

    Returns:
        The selection without them, and the slots; `None` if no row has virtual tokens for them.

    Raises:
        ValueError: If the index has a virtual token that the row's prompts do not have.
        UnsupportedError: If a prompt's tokens cannot be read like text.
    """
    tables, others = zip(*[_split(combination, placements) for combination in selection.combinations], strict=True)
    counts = _counts(tables)
    if not torch.compiler.is_compiling() and not is_checked:
        _check_range(selection, counts, index)
    if not any(counts):
        return selection, None
    return Selection(others, selection.rows), Slots(index, stack_padded(tables, max(counts)), in_generate)


def _split(
    combination: Combination, placements: Mapping[Part, Placement]
) -> tuple[Float[Tensor, "tokens hidden"] | None, Combination]:
    """Return a combination's embeddings, prompt after prompt, and the prompts that have none."""
    embeddings: list[Tensor] = []
    others: list[Part] = []
    for part in combination:
        _check_weight(part, placements[part])
        own = placements[part].tokens.at_input
        if own is None:
            others.append(part)
        else:
            embeddings.append(own)
    return torch.cat(embeddings) if embeddings else None, tuple(others)


def _counts(tables: Sequence[Float[Tensor, "_ hidden"] | None]) -> list[int]:
    return [0 if table is None else len(table) for table in tables]


def check_second_text(backbone: Backbone) -> None:
    """Refuse a forward to which `generate` passes no slots: it reads a different text, unless it is an encoder's.

    Args:
        backbone: Sizes of the model that `generate` was called on.

    Raises:
        UnsupportedError: If the model has no encoder.
    """
    if backbone.kind.is_causal:
        raise UnsupportedError(
            "generate runs the model on a second text, as with guidance_scale, in which the places of the virtual "
            "tokens of soft_slots are unknown; call generate without guidance_scale"
        )


def _check_weight(part: Part, placement: Placement) -> None:
    """Refuse a prompt whose tokens cannot be read like text."""
    if placement.is_pooled:
        raise UnsupportedError(
            f"prompt {part.name!r} has pools_prompt=True, but its tokens are in soft slots inside the text; "
            "leave soft_slots out to put it in front"
        )
    if placement.tokens.at_input is not None and placement.weight != 1.0:
        raise UnsupportedError(
            f"prompt {part.name!r} has the weight {placement.weight}, but its tokens are in soft slots, where they "
            "are read like text; set its weight to 1"
        )


def _combination_of_rows(selection: Selection, rows: int) -> Int[Tensor, " {rows}"]:
    """Return the index of each row's combination, on the CPU."""
    if selection.rows is None:
        return torch.zeros(rows, dtype=torch.long)
    if selection.rows.shape[0] != rows:
        raise ValueError(f"soft_slots has {rows} rows, prompts has {selection.rows.shape[0]}; give one for each row")
    return selection.rows.cpu()


def _check_range(selection: Selection, counts: list[int], index: Int[Tensor, "rows length"]) -> None:
    """Refuse entries that are not a virtual token of their row; `counts` has each combination's number of them."""
    if not index.numel():
        return
    there = torch.tensor(counts)[_combination_of_rows(selection, index.shape[0])]
    smallest, largest = index.cpu().aminmax(dim=1)
    if int(smallest.min()) < -1:
        row = int(smallest.argmin())
        raise ValueError(f"row {row} of soft_slots has {int(smallest[row])}; expected a virtual token's index, or -1")
    wrong = (largest >= there).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"row {row} of soft_slots uses virtual token {int(largest[row])}, but its prompts have "
            f"{int(there[row])} at the input embeddings, counted from 0; use fewer slots, or more virtual tokens"
        )
