"""The prompt arguments of a call: `prompts=`, `task_ids=`, `soft_slots=` and `text_mask=`.

Each is checked as soon as what it is checked against is known. The order, for a forward:

1. `Request.read` checks types, dtypes and numbers of axes, and that no row has the same prompt twice. Each argument has
   its own module: `sites.prompts_argument`, `sites.task_ids_argument`, `sites.soft_slots_argument`; `text_mask` is
   checked here.
2. `Request.for_text` checks that `prompts` and `task_ids` have as many rows as the text, which is the decoder's if an
   encoder's states are given instead.
3. `model.resolve` checks values against the prompts: that they exist (`check_known`), that they have the task of their
   row (`sites.separate_parts`), and that they have the virtual tokens that slots name (`sites.slots.take_slots`).
4. The stack checks what depends on its cache: the shapes of `soft_slots` (`sites.slots.fill_slots`) and `text_mask`
   (`sites.reading`).

If a stack is called without the model around it, step 2 is part of step 3. `generate` does steps 1 and 2 before its
first forward, and checks whether the prompts exist, the shape of `soft_slots` and the rows of `text_mask`
(`Request.for_generate`); what it hands on has one row for each beam.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.shapes import Int, Shaped
from softprompt_zoo.sites.prompts_argument import read_prompts
from softprompt_zoo.sites.selection import Selection
from softprompt_zoo.sites.soft_slots_argument import check_slots, read_soft_slots
from softprompt_zoo.sites.task_ids_argument import read_task_ids, spread_task_ids

NEW_ARGUMENTS = ("prompts", "task_ids", "soft_slots", "text_mask")
"""The additional arguments of a prompted model's forward and `generate`."""
REQUEST_KEYWORD = "softprompt_zoo_request"
"""Forward keyword that carries a `Request` from `generate` to the model's forward, where it replaces the arguments."""


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
        """Read the user's arguments, and check what can be checked without the text: step 1 of those above.

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
        selection = None if prompts is None else read_prompts(prompts, names)
        return cls(selection, read_task_ids(task_ids), read_soft_slots(soft_slots), _read_text_mask(text_mask))

    def for_text(self, rows: int) -> "Request":
        """Check the request against the text: step 2 of those above.

        Args:
            rows: Rows of the text.

        Returns:
            The request with the task of every row.

        Raises:
            ValueError: If the number of rows differs.
        """
        if self.selection is not None:
            self.selection.check_rows(rows)
        if self.task_ids is None:
            return self
        return dataclasses.replace(self, task_ids=spread_task_ids(self.task_ids, rows))

    def for_generate(self, rows: int, length: int | None) -> "Request":
        """Check the request against the text that `generate` continues, whose rows are then repeated for beams.

        Args:
            rows: Rows of the text.
            length: Tokens of a row; `None` if there is no text whose tokens could be counted.

        Returns:
            The request with the task of every row.

        Raises:
            ValueError: If the number of rows or tokens differs.
        """
        if self.soft_slots is not None and length is not None:
            check_slots(self.soft_slots, rows, length)
        if self.text_mask is not None and self.text_mask.shape[0] != rows:
            raise ValueError(
                f"text_mask has shape {tuple(self.text_mask.shape)} for a text of {rows} rows; give one entry for "
                "each token of each row, like attention_mask"
            )
        return self.for_text(rows)

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
            _repeated("task_ids", self.task_ids, rows),
            _repeated("soft_slots", self.soft_slots, rows),
            _repeated("text_mask", self.text_mask, rows),
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


def _read_text_mask(mask: Any) -> Shaped[Tensor, "rows length"] | None:
    """Return a mask over the text; refuse anything else."""
    if mask is None:
        return None
    expected = "expected booleans or integers (rows, length), like attention_mask: true for text"
    if not isinstance(mask, Tensor):
        raise TypeError(f"text_mask is {type(mask).__name__}; {expected}")
    if mask.ndim != 2 or mask.is_floating_point():
        raise ValueError(f"text_mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; {expected}")
    return mask


def _repeated(name: str, given: Shaped[Tensor, "_ ..."] | None, rows: int) -> Shaped[Tensor, "{rows} ..."] | None:
    """Repeat each row of an argument in place; refuse one whose rows do not divide those of the batch."""
    if given is None:
        return None
    count = given.shape[0]
    if not count or rows % count:
        raise ValueError(f"{name} has {count} entries for a batch of {rows} rows; give one entry for each row")
    return torch.repeat_interleave(given, rows // count, dim=0)
