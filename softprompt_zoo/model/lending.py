"""Prompts of a bank that a model's rows see: ready on its device, bounded in memory, and noticed when replaced."""

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import ZooError
from softprompt_zoo.sites.select import Lent
from softprompt_zoo.tokens.placement import Placement


@dataclasses.dataclass(frozen=True)
class Ready:
    """A stored prompt on a model's device, in its dtype."""

    stamp: bytes
    """Of the record it was made from."""
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
        """Refuse another model than the bank's."""

    def __contains__(self, name: object) -> bool:
        """Say whether it has a prompt."""

    def lend(self, names: Iterable[str], device: torch.device, dtype: torch.dtype) -> dict[str, Ready]:
        """Return those of the prompts that the bank has, as they are now; unchanged ones are the same objects."""


class ReadyCache:
    """The prompts that were used last, bounded by what they take on the device."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        """Bytes of what is kept."""
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
        """Keep a prompt, and let go of those whose last use is the longest ago."""
        with self._lock:
            self._drop(key)
            self._entries[key] = ready
            self.size += ready.size
            while self.size > self.max_bytes:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._entries.clear()
            self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, key: Any) -> None:
        dropped = self._entries.pop(key, None)
        self.size -= 0 if dropped is None else dropped.size


def named(prompts: Any) -> list[str]:
    """List every name in the `prompts` argument of a forward; what is wrong with its form is found elsewhere."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        return []
    return list(dict.fromkeys(name for entry in prompts for name in named(entry)))


class Borrower:
    """What a model's prompts do with a bank; mixed into them."""

    backbone: Backbone
    _bank: Lender | None = None
    _lent: Mapping[str, Ready] = {}
    """What the last forward borrowed that was no decoding step; replaced, never changed."""

    @property
    def bank(self) -> Lender | None:
        """A `PromptBank` whose names may stand in `prompts`, beside the model's own, which win; `None` for none.

        It is no part of the model: nothing of it is trained, saved or counted.
        """
        return self._bank

    @bank.setter
    def bank(self, bank: Lender | None) -> None:
        if bank is not None:
            if not callable(getattr(bank, "lend", None)):
                raise TypeError(f"bank is {bank!r} ({type(bank).__name__}); expected a zoo.PromptBank or None")
            bank.check(self.backbone)
        self._bank = bank
        self._lent = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if self._bank is not None and self._bank.backbone is None:
            self._bank.backbone = self.backbone

    def __setattr__(self, name: str, value: Any) -> None:
        # Torch would take it for the prompt of that name, if there is one.
        if name == "bank" or name in self.__dict__.get("_modules", ()):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def advise(self, name: object, instead: str = "") -> str:
        """Say in a message that the bank has a prompt which the model has not, and what to do.

        Args:
            name: The prompt.
            instead: What to do; by default, how its prompts are used.

        Returns:
            The end of a message; empty if there is no bank, or it has none of that name or cannot be read.
        """
        has = False
        with contextlib.suppress(ZooError):
            has = self._bank is not None and name in self._bank
        if self._bank is None or not has:
            return ""
        instead = instead or (
            f"name it in prompts=[…] of a call, or put a copy on the model with model.prompts.add({name!r}, "
            f"model.prompts.bank.get({name!r}))"
        )
        return f"; its bank {self._bank.address} has it: {instead}"

    def borrow(self, prompts: Any, held: dict[str, Ready] | None, is_decoding: bool) -> dict[str, Ready]:
        """Get what a call names and the model does not have from the bank.

        Args:
            prompts: As `forward` takes it.
            held: The prompts of a `generate`, which get what is lent; `None` in a forward by itself.
            is_decoding: Whether text is in the cache already. Decoding goes on with the prompts that it began with,
                for another one may replace them in the bank.

        Returns:
            The prompts that the bank has, by name; none without a bank.
        """
        if self._bank is None:
            return {}
        before = self._lent if held is None else held
        lent: dict[str, Ready] = _borrow(self._bank, prompts, self, self.backbone, before if is_decoding else {})
        if held is not None:
            held.update(lent)
        elif not is_decoding:
            self._lent = lent
        return lent

    def describe_loan(self, lent: Mapping[str, Ready]) -> Lent | None:
        """Say for `select` what the bank has of the names; `None` without a bank."""
        return None if self._bank is None else Lent(lent, self._bank.address)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _borrow(bank: Lender, prompts: Any, own: Any, backbone: Backbone, held: Mapping[str, Ready]) -> dict[str, Ready]:
    wanted = [name for name in named(prompts) if name not in own]
    lent = {name: held[name] for name in wanted if name in held}
    missing = [name for name in wanted if name not in lent]
    if missing:
        # Where the model is and in what dtype it computes now: it may have been moved since it got its prompts.
        probe = backbone.embed(torch.zeros(1, dtype=torch.long, device=backbone.device))
        lent |= bank.lend(missing, probe.device, probe.dtype)
    return lent
