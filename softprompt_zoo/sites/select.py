"""The `prompts` argument of `forward` and `generate`: which combination of prompts each row sees."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnknownPromptError
from softprompt_zoo.sites.call import Combination, Selection


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
