"""The prompt arguments of a call: `prompts=`, `task_ids=`, `soft_slots=` and `text_mask=`, checked once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Int, Shaped
from softprompt_zoo.sites.select import select
from softprompt_zoo.sites.selection import Selection
from softprompt_zoo.sites.slots import check_slot_kind, check_slots
from softprompt_zoo.sites.tasks import check_task_ids, spread_task_ids

NEW_ARGUMENTS = ("prompts", "task_ids", "soft_slots", "text_mask")
"""The additional arguments of a prompted model's forward and `generate`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """The request of one forward or one `generate`."""

    selection: Selection | None = None
    """Which rows see which combination; `None` for the active prompts in every row."""
    task_ids: Int[Tensor, " #rows"] | None = None
    """One task for each row, or one for all rows."""
    soft_slots: Int[Tensor, "rows length"] | None = None
    """Index of the virtual token at each place of the text, -1 for text."""
    text_mask: Shaped[Tensor, "rows length"] | None = None
    """Which positions are the text that prompts are made from; `None` for all that are neither padding nor labeled."""

    @classmethod
    def read(cls, arguments: Mapping[str, Any], names: Sequence[str]) -> "Request":
        """Read the user's arguments.

        Args:
            arguments: Those of `NEW_ARGUMENTS` that were passed; `None` counts as not passed.
            names: The prompts of the model, in the order in which they were added.

        Returns:
            The request; `NOTHING` if no argument was passed.

        Raises:
            TypeError: If an argument has a wrong type.
            ValueError: If one has a wrong dtype, shape or value.
            UnknownPromptError: If one has the index of a prompt that does not exist.
        """
        prompts, task_ids, soft_slots, text_mask = map(arguments.get, NEW_ARGUMENTS)
        if prompts is None and task_ids is None and soft_slots is None and text_mask is None:
            return NOTHING
        selection = None if prompts is None else select(prompts, names)
        return cls(selection, check_task_ids(task_ids), check_slot_kind(soft_slots), _check_text_mask(text_mask))

    def for_text(self, rows: int, length: int | None = None) -> "Request":
        """Check the request against the text.

        Args:
            rows: Rows of the text.
            length: Tokens of a row; `None` to check this later, when the cache is known.

        Returns:
            The request with the task of every row.

        Raises:
            ValueError: If the number of rows or tokens differs.
        """
        if self.selection is not None:
            self.selection.check_rows(rows)
        if self.soft_slots is not None and length is not None:
            check_slots(self.soft_slots, rows, length)
        if self.task_ids is None:
            return self
        return dataclasses.replace(self, task_ids=spread_task_ids(self.task_ids, rows))

    def repeated(self, rows: int) -> "Request":
        """Repeat the rows to match a batch expanded by beams or several return sequences.

        Args:
            rows: Rows of the batch.

        Returns:
            The request with as many rows, each repeated in place.

        Raises:
            ValueError: If the batch is not a multiple of the request's rows.
        """
        return Request(
            None if self.selection is None else self.selection.repeated(rows),
            None if self.task_ids is None else _repeated_tasks(self.task_ids, rows),
            None if self.soft_slots is None else _repeated(self.soft_slots, rows),
            None if self.text_mask is None else _repeated(self.text_mask, rows),
        )

    def filled(self, outer: "Request") -> "Request":
        """Fill in what this request leaves out from the request around it."""
        return Request(
            outer.selection if self.selection is None else self.selection,
            outer.task_ids if self.task_ids is None else self.task_ids,
            outer.soft_slots if self.soft_slots is None else self.soft_slots,
            outer.text_mask if self.text_mask is None else self.text_mask,
        )


NOTHING = Request()
"""The active prompts in every row."""


def _check_text_mask(mask: Any) -> Shaped[Tensor, "rows length"] | None:
    """Return a mask over the text; refuse anything else."""
    if mask is None:
        return None
    expected = "expected booleans or integers (rows, length), like attention_mask: true for text"
    if not isinstance(mask, Tensor):
        raise TypeError(f"text_mask is {type(mask).__name__}; {expected}")
    if mask.ndim != 2 or mask.is_floating_point():
        raise ValueError(f"text_mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; {expected}")
    return mask


def _repeated_tasks(task_ids: Int[Tensor, " _"], rows: int) -> Int[Tensor, " {rows}"]:
    return spread_task_ids(task_ids, rows) if rows % len(task_ids) else _repeated(task_ids, rows)


def _repeated(tensor: Shaped[Tensor, "_ ..."], rows: int) -> Shaped[Tensor, "_ ..."]:
    return torch.repeat_interleave(tensor, rows // tensor.shape[0], dim=0)
