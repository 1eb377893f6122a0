"""The `prompts` argument of `forward` and `generate`: which combination of prompts each row sees."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnknownPromptError
from softprompt_zoo.shapes import Shaped
from softprompt_zoo.sites.selection import Combination, Part, Selection, indexed


def read_prompts(prompts: Any, names: Sequence[str]) -> Selection:
    """Read the `prompts` argument of `forward` and `generate`.

    Args:
        prompts: One name for all rows; or one entry per row: a name, a list of names, or `None` for a bare row. An
            integer tensor indexes `names`, with -1 for a bare row.
        names: The prompts of the model, in the order in which they were added; other names may be a bank's.

    Returns:
        The distinct combinations, and each row's index into them.

    Raises:
        UnknownPromptError: If an index is out of range.
        TypeError: If an entry is none of the above.
        ValueError: If a row has the same prompt twice.
    """
    if isinstance(prompts, str):
        return Selection(((Part(prompts),),), None)
    if isinstance(prompts, Tensor):
        return _select_by_index(prompts, names)
    if not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts is {type(prompts).__name__}; expected one entry per row (a prompt's name, a list of names, or "
            "None) or an integer tensor"
        )
    return _selected([_combination(entry, f"prompts[{row}]") for row, entry in enumerate(prompts)])


def _selected(wanted: list[Combination]) -> Selection:
    """Make a selection from the combination of every row."""
    distinct, rows = indexed(wanted)
    return Selection(tuple(distinct), torch.tensor(rows, dtype=torch.long))


def check_known(selection: Selection, names: Sequence[str], lent: Collection[str], bank: str | None) -> None:
    """Refuse unknown prompts.

    Args:
        selection: Which rows see which combination.
        names: The prompts of the model.
        lent: Those of them that its bank has.
        bank: The bank's address, for the message; `None` if there is none.

    Raises:
        UnknownPromptError: If a prompt is in neither.
    """
    known = {*names, *lent}
    for index, combination in enumerate(selection.combinations):
        for part in combination:
            if part.name not in known:
                row = 0 if selection.rows is None else selection.rows.tolist().index(index)
                raise UnknownPromptError(_unknown(part.name, names, f"prompts[{row}]", bank))


def _unknown(name: str, names: Sequence[str], what: str, bank: str | None) -> str:
    there = ", ".join(map(repr, names)) or "none"
    nor = "" if bank is None else f", and its bank {bank} has no prompt of that name"
    return f"no prompt {name!r}, named in {what}; the model has {there}{nor}"


def _select_by_index(prompts: Shaped[Tensor, "..."], names: Sequence[str]) -> Selection:
    _check_indices(prompts)
    if torch.compiler.is_compiling():
        # Values are unknown while tracing: prepare every prompt, with bare rows last.
        everything = (*((Part(name),) for name in names), ())
        return Selection(everything, torch.where(prompts < 0, len(names), prompts).long())
    return read_prompts([_name_of(index, names) for index in prompts.tolist()], names)


def _name_of(index: int, names: Sequence[str]) -> str | None:
    if not -1 <= index < len(names):
        raise UnknownPromptError(
            f"prompts has index {index}; the model has {len(names)} prompts, so -1 to {len(names) - 1}"
        )
    return None if index < 0 else names[index]


def _check_indices(prompts: Shaped[Tensor, "..."]) -> None:
    if prompts.ndim != 1 or prompts.is_floating_point() or prompts.dtype == torch.bool:
        raise TypeError(
            f"prompts is a tensor of shape {tuple(prompts.shape)} and dtype {prompts.dtype}; "
            "expected integers of shape (rows,): indices of model.prompts, -1 for a bare row"
        )


def _combination(entry: Any, what: str) -> Combination:
    return tuple([Part(name) for name in _names(() if entry is None else entry, what)])


def _names(parts: Any, what: str) -> tuple[str, ...]:
    if isinstance(parts, str):
        return (parts,)
    if not isinstance(parts, list | tuple) or not all([isinstance(part, str) for part in parts]):
        raise TypeError(f"{what} is {parts!r}; expected a prompt's name, a list of names, or None")
    if len(set(parts)) < len(parts):
        raise ValueError(f"{what} is {parts!r}; each prompt may occur in it only once")
    return tuple(parts)


def check_combination(parts: Any, names: Sequence[str], what: str) -> tuple[str, ...]:
    """Check that prompts of a model can be combined.

    Args:
        parts: Their names, in order; a string is one name.
        names: The prompts of the model.
        what: What is checked, for the message.

    Returns:
        The names.

    Raises:
        TypeError: If `parts` is neither a name nor a list of names.
        UnknownPromptError: If one does not exist.
        ValueError: If one occurs twice.
    """
    combination = _names(parts, what)
    unknown = next((name for name in combination if name not in names), None)
    if unknown is not None:
        raise UnknownPromptError(_unknown(unknown, names, what, None))
    return combination
