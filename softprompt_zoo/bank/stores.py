"""The interface of every store in which a bank keeps its records."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from softprompt_zoo.errors import BankError, UnknownPromptError

Records = Callable[[], Iterable[tuple[str, bytes]]]
"""Makes the records to write, as pairs of name and bytes; called again if a store has to start over."""

Result = TypeVar("Result")


class Store(Protocol):
    """Records by name. Once a write returns, every later reader sees what it wrote."""

    address: str
    """As the user gave it."""

    def open_header(self, header: bytes | None) -> bytes | None:
        """Return the bank's header; write `header` if there is no bank yet.

        Args:
            header: The header of a new bank; `None` not to create one.

        Returns:
            The current header; `None` if there is no bank.
        """

    def read(
        self, names: Iterable[str], known: Mapping[str, bytes], decode: Callable[[str, memoryview], Result]
    ) -> dict[str, Result | None]:
        """Read records, all from the same state of the bank if the store supports it.

        Args:
            names: The prompts.
            known: Stamps of records that need not be read again, by name.
            decode: Makes the result from name and bytes; the bytes are valid only until it returns.

        Returns:
            The results of `decode` by name, `None` if the stamp is the known one; missing records are left out.
        """

    def peek(self, name: str, size: int) -> bytes | None:
        """Read the first bytes of a record.

        Args:
            name: The prompt.
            size: Number of bytes; a shorter record is read whole.

        Returns:
            The bytes; `None` if there is no such record.
        """

    def write(self, records: Records, overwrite: bool) -> None:
        """Write records, all or none. An existing name raises `PromptExistsError` unless `overwrite`."""

    def delete(self, names: Sequence[str]) -> None:
        """Delete records, all or none. An unknown name raises `UnknownPromptError`."""

    def names(self, prefix: str) -> Iterator[str]:
        """Iterate over the names that start with a prefix, sorted."""

    def __len__(self) -> int: ...

    def close(self) -> None:
        """Release files and memory; any later use raises `closed`."""


def closed(address: str) -> BankError:
    """Return the error that a closed store raises."""
    return BankError(f"the bank {address} is closed; open it again with zoo.PromptBank")


def unknown(address: str, name: object) -> UnknownPromptError:
    """Return the error for a prompt that a bank does not have."""
    return UnknownPromptError(f"the bank {address} has no prompt {name!r}")
