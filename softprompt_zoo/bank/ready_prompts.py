"""Prompts of a bank, prepared on a device."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from softprompt_zoo.bank.opened_bank import OpenedBank
from softprompt_zoo.bank.restoring import RecordReader
from softprompt_zoo.model.lending import Ready, ReadyCache

Lend = Callable[[Iterable[str], torch.device, torch.dtype], dict[str, Ready]]


def lend(
    bank: OpenedBank, cache: ReadyCache, names: Iterable[str], device: torch.device, dtype: torch.dtype
) -> dict[str, Ready]:
    """Prepare prompts for a model.

    Args:
        bank: The bank.
        cache: Prompts that are already prepared; receives those that are read.
        names: The prompts.
        device: The device to put them on.
        dtype: The dtype of their virtual tokens.

    Returns:
        Those that the bank has, by name, in their current state; unchanged ones are the same objects.

    Raises:
        CheckpointError: If an entry is damaged.
    """
    backbone = bank.model_for("use")
    kept = {}
    for name in names:
        kept[name] = cache.get((name, device, dtype))
    known = {name: ready.stamp for name, ready in kept.items() if ready is not None}
    found: dict[str, Any] = bank.read(kept, known, RecordReader(bank.address, backbone, device, dtype).ready)
    for name, ready in found.items():
        if ready is None:
            found[name] = kept[name]
        else:
            cache.put((name, device, dtype), ready)
    return found


def prepare(bank: OpenedBank, lend: Lend, names: Iterable[str]) -> list[Any]:
    """Prepare prompts on the model's device; arguments and errors as in `PromptBank.prepare`."""
    names = _listed(names)
    backbone = bank.model_for("prepare")
    probe = backbone.embed(torch.zeros(1, dtype=torch.long, device=backbone.device))
    ready = lend(names, probe.device, probe.dtype)
    for name in names:
        if name not in ready:
            raise bank.unknown(name)
    return [ready[name].placement for name in names]


def _listed(names: Any) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"names is {names!r} ({type(names).__name__}); expected a list of names")
    return list(names)
