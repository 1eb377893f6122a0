"""Prompts that a model borrows from a bank: ready on its device, bounded in memory, and updated when replaced."""

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import ZooError
from softprompt_zoo.tokens.placement import Placement


@dataclasses.dataclass(frozen=True)
class Ready:
    """A stored prompt on a model's device, in its dtype."""

    stamp: bytes
    """Stamp of the record it was made from."""
    placement: Placement
    head: nn.ModuleDict | None
    """Its trained task head."""
    size: int
    """Bytes on the device."""


class Lender(Protocol):
    """What a model's prompts need of a bank."""

    address: str
    backbone: Backbone | None
    """Sizes of the model; a copy from a pickle has none until a model takes it."""

    def check(self, backbone: Backbone) -> None:
        """Refuse a model that the bank was not made for."""

    def __contains__(self, name: object) -> bool:
        """Return whether it has a prompt."""

    def lend(self, names: Iterable[str], device: torch.device, dtype: torch.dtype) -> dict[str, Ready]:
        """Return those of the prompts that the bank has, as they are now; unchanged prompts are the same objects."""


class ReadyCache:
    """The most recently used prompts, bounded by their size on the device."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        """Bytes that are held."""
        self._entries: collections.OrderedDict[Any, Ready] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Ready | None:
        """Return a prompt and note that it was used."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: Any, ready: Ready) -> None:
        """Add a prompt, and drop the least recently used ones."""
        with self._lock:
            self._drop(key)
            self._entries[key] = ready
            self.size += ready.size
            while self.size > self.max_bytes:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Drop all prompts."""
        with self._lock:
            self._entries.clear()
            self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, key: Any) -> None:
        dropped = self._entries.pop(key, None)
        self.size -= 0 if dropped is None else dropped.size


class Lending:
    """A bank whose names `prompts` accepts, and what a model last borrowed from it."""

    def __init__(self, lender: Lender, backbone: Backbone) -> None:
        if not callable(getattr(lender, "lend", None)):
            raise TypeError(f"bank is {lender!r} ({type(lender).__name__}); expected a zoo.PromptBank or None")
        lender.check(backbone)
        self.lender = lender
        self._last: Mapping[str, Ready] = {}
        """What was borrowed by the last forward that was not a decoding step; replaced, never changed."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": {}}

    @property
    def address(self) -> str:
        """The bank, for messages."""
        return self.lender.address

    def advise(self, name: object, instead: str = "") -> str:
        """Return what to do if the bank has a prompt that the model lacks, to be added to a message.

        Args:
            name: The prompt.
            instead: What to do; by default, how its prompts are used.

        Returns:
            The end of a message; empty if the bank has none of that name or cannot be read.
        """
        has = False
        with contextlib.suppress(ZooError):
            has = name in self.lender
        if not has:
            return ""
        instead = instead or (
            f"name it in prompts=[…] of a call, or put a copy on the model with model.prompts.add({name!r}, "
            f"model.prompts.bank.get({name!r}))"
        )
        return f"; its bank {self.address} has it: {instead}"

    def borrow(
        self, wanted: Sequence[str], backbone: Backbone, held: dict[str, Ready] | None, is_decoding: bool
    ) -> Mapping[str, Ready]:
        """Get prompts from the bank.

        Args:
            wanted: Names in a call that the model does not have.
            backbone: Sizes of the model.
            held: The prompts of a text, to which borrowed ones are added; `None` if nothing is kept for it.
            is_decoding: Whether there is already text in the cache. Decoding continues with the prompts it started
                with, since they may have been replaced in the bank.

        Returns:
            Those that the bank has, by name.
        """
        before = self._last if held is None else held
        lent: dict[str, Ready] = _borrow(self.lender, wanted, backbone, before if is_decoding else {})
        if held is not None:
            held.update(lent)
        elif not is_decoding:
            self._last = lent
        return lent


@torch.compiler.disable
def _borrow(bank: Lender, wanted: Sequence[str], backbone: Backbone, held: Mapping[str, Ready]) -> dict[str, Ready]:
    lent = {name: held[name] for name in wanted if name in held}
    missing = [name for name in wanted if name not in lent]
    if missing:
        # The model's current device and dtype: it may have been moved since it got its prompts.
        probe = backbone.embed(torch.zeros(1, dtype=torch.long, device=backbone.device))
        lent |= bank.lend(missing, probe.device, probe.dtype)
    return lent
