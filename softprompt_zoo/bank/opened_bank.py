"""An open bank: its store, and the model it is for."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from softprompt_zoo.backbone import identity
from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.bank.names import is_name
from softprompt_zoo.bank.opening import open_bank
from softprompt_zoo.bank.stores import Store, unknown
from softprompt_zoo.errors import BankError, UnknownPromptError
from softprompt_zoo.model.attachment import attached_prompts
from softprompt_zoo.trial.examination import examine


class OpenedBank:
    """A bank's store and model; a copy opens its own store on first use.

    Args:
        address: The bank, as text.
        backbone: Sizes of the model and its embedding table; `None` to use none.
        max_bytes: Maximum size of a folder's file, in bytes.
        storage_options: Options of the address's file system.

    Raises:
        ZooError: As `PromptBank` does.
    """

    def __init__(
        self,
        address: str,
        backbone: Backbone | None,
        max_bytes: int | None,
        storage_options: Mapping[str, Any] | None,
    ) -> None:
        self.address = address
        self.backbone = backbone
        self._options: dict[str, Any] = {"max_bytes": max_bytes, "storage_options": storage_options}
        self._opened = self._open(backbone)
        if backbone is not None:
            self.check(backbone)

    def _open(self, backbone: Backbone | None) -> tuple[Store, dict[str, Any]]:
        """Open the store; with a backbone, it is created if missing."""
        return open_bank(self.address, backbone, **self._options)

    @functools.cached_property
    def _opened(self) -> tuple[Store, dict[str, Any]]:
        """The store and the header; a copy opens an existing one on first use, but never creates one."""
        opened = self._open(None)
        if self.backbone is not None:
            identity.check(opened[1], self.backbone, f"the bank {self.address}")
        return opened

    @property
    def store(self) -> Store:
        """The store of the records."""
        return self._opened[0]

    def check(self, backbone: Backbone) -> None:
        """Refuse a model that is not the bank's; arguments and errors as in `PromptBank.check`."""
        identity.check(self._opened[1], backbone, f"the bank {self.address}")

    def read(self, names: Iterable[Any], known: Mapping[str, bytes], decode: Callable[[str, memoryview], Any]) -> Any:
        """Read records as `Store.read` does; an invalid name counts as missing."""
        return self.store.read([name for name in names if is_name(name)], known, decode)

    def model_for(self, action: str) -> Backbone:
        """Return the sizes of the model.

        Args:
            action: What the model is needed for, as a verb, for the message.

        Raises:
            BankError: If the bank was opened without one.
        """
        if self.backbone is None:
            raise BankError(
                f"the bank {self.address} was opened without a model, which is needed to {action} prompts; open it "
                f"with zoo.PromptBank({self.address!r}, model)"
            )
        return self.backbone

    def unknown(self, name: object) -> UnknownPromptError:
        """Return the error for a prompt that does not exist."""
        return unknown(self.address, name)

    def __getstate__(self) -> dict[str, Any]:
        # Without the model: a copy gets it from the prompts that it belongs to.
        return {"address": self.address, "backbone": None, "_options": self._options}


def backbone_of(model: Any) -> Backbone | None:
    """Return the sizes of a model, with or without prompts; `None` for none."""
    if model is None or isinstance(model, Backbone):
        return model
    own = attached_prompts(model)
    return examine(model)[0] if own is None else own.backbone
