"""Where a bank keeps its records: what every store offers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from softprompt_zoo.errors import BankError, UnknownPromptError

Records = Callable[[], Iterable[tuple[str, bytes]]]
"""Makes the records to write, by name; called again where a store has to start over."""

Result = TypeVar("Result")


class Store(Protocol):
    """Records by name. What was written is there for every later reader when the write returns."""

    address: str
    """As the user gave it."""

    def open_header(self, header: bytes | None) -> bytes | None:
        """Return the bank's header; write `header` if there is no bank yet.

        Args:
            header: What a new bank gets; `None` to make no bank.

        Returns:
            The header that is there now; `None` if there is no bank.
        """

    def read(
        self, names: Iterable[str], known: Mapping[str, bytes], decode: Callable[[str, memoryview], Result]
    ) -> dict[str, Result | None]:
        """Read records, all in the same state of the bank where the store has one.

        Args:
            names: The prompts.
            known: By name the stamp of a record that needs not be read again.
            decode: From name and bytes, which are gone when it returns, to the result.

        Returns:
            By name what `decode` made of it, `None` if its stamp is the known one; others are not there.
        """

    def peek(self, name: str, size: int) -> bytes | None:
        """Read the first bytes of a record.

        Args:
            name: The prompt.
            size: How many; a shorter record is read whole.

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
        """Let go of files and memory; what is asked of it later raises `closed`."""


def closed(address: str) -> BankError:
    """Return what a store raises once it is closed."""
    return BankError(f"the bank {address} is closed; open it again with zoo.PromptBank")


def unknown(address: str, name: object) -> UnknownPromptError:
    """Return what asking a bank for a prompt raises that is not there."""
    return UnknownPromptError(f"the bank {address} has no prompt {name!r}")
