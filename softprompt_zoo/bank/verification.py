"""Finding the damaged entries of a bank."""

import itertools
from collections.abc import Callable
from typing import Any

import torch

from softprompt_zoo.bank import records
from softprompt_zoo.bank.opened_bank import OpenedBank
from softprompt_zoo.bank.restoring import RecordReader
from softprompt_zoo.errors import ZooError

BAR_AFTER = 1.0
"""Seconds after which a progress bar is shown. Our choice."""
VERIFIED_AT_ONCE = 64


def find_damage(bank: OpenedBank) -> dict[str, str]:
    """Read and check every entry.

    Args:
        bank: The bank; without a model, only checksums are checked.

    Returns:
        What is wrong with each damaged entry, by name.
    """
    from transformers.utils.logging import tqdm

    problems: dict[str, str] = {}
    read = _reader(bank)

    def examine(name: str, data: memoryview) -> None:
        try:
            read(name, data)
        except ZooError as error:
            problems[name] = str(error)

    lost: list[str] = []
    names = bank.store.names("")
    with tqdm(desc="verifying prompts", unit="prompt", leave=False, delay=BAR_AFTER) as bar:
        while waiting := list(itertools.islice(names, VERIFIED_AT_ONCE)):
            found = bank.read(waiting, {}, examine)
            lost += [name for name in waiting if name not in found]
            bar.update(len(waiting))
    return problems | (_still_listed(bank, lost) if lost else {})


def _still_listed(bank: OpenedBank, lost: list[str]) -> dict[str, str]:
    """Report entries that are listed but were not found; those no longer listed were deleted meanwhile."""
    what = f"is listed in the bank {bank.address} but not found: the index is damaged; restore it from a copy"
    return {name: f"{name!r} {what}" for name in sorted(set(bank.store.names("")).intersection(lost))}


def _reader(bank: OpenedBank) -> Callable[[str, memoryview], Any]:
    """Return a function that reads a whole entry, for the bank's model if it is known."""
    if bank.backbone is None:
        return lambda name, data: records.decode(name, data, bank.address)
    return RecordReader(bank.address, bank.backbone, torch.device("cpu"), None).ready
