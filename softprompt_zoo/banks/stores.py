"""Where a bank keeps its records: what every store offers, and which one an address means."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from softprompt_zoo.errors import BankError

Records = Callable[[], Iterable[tuple[str, bytes]]]
"""Makes the records to write, by name; called again where a store has to start over."""

Result = TypeVar("Result")


class Store(Protocol):
    """Records by name. What a write was told is there for every later reader when the write returns."""

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

    def write(self, records: Records, overwrite: bool) -> None:
        """Write records, all or none. An existing name raises `PromptExistsError` unless `overwrite`."""

    def delete(self, names: Sequence[str]) -> None:
        """Delete records, all or none. An unknown name raises `UnknownPromptError`."""

    def names(self, prefix: str) -> Iterator[str]:
        """Iterate over the names that begin so, sorted."""

    def __len__(self) -> int: ...

    def close(self) -> None:
        """Let go of files and memory; what is asked of it later raises `closed`."""


def closed(address: str) -> BankError:
    """Return what a store raises once it is closed."""
    return BankError(f"the bank {address} is closed; open it again with zoo.PromptBank")


def check_address(address: str | os.PathLike[str]) -> str:
    """Return an address as text.

    Args:
        address: A folder, or an fsspec address such as `s3://bucket/bank`.

    Raises:
        TypeError: If it is not text or a path.
        BankError: If it is empty.
    """
    text = os.fspath(address) if isinstance(address, str | os.PathLike) else address
    if not isinstance(text, str):
        raise TypeError(
            f"the bank's address is {address!r} ({type(address).__name__}); expected a folder, or an address such as "
            "s3://bucket/bank"
        )
    if not text:
        raise BankError("the bank's address is empty; name a folder, or an address such as s3://bucket/bank")
    return text


def open_store(
    text: str,
    max_bytes: int | None,
    storage_options: Mapping[str, Any] | None,
    is_new_allowed: bool,
) -> Store:
    """Find the store that an address means.

    Args:
        text: A folder, or an fsspec address such as `s3://bucket/bank`.
        max_bytes: Bound on a folder's size.
        storage_options: Options of the address's file system.
        is_new_allowed: Whether the folder may be made.

    Returns:
        The store; nothing of a bank was read yet.

    Raises:
        ValueError: If an option is of the other kind of store.
        BankError: If the place cannot be used.
    """
    if "://" in text:
        if max_bytes is not None:
            raise ValueError(f"max_bytes is {max_bytes}; it bounds a folder, and {text} is an address: leave it out")
        from softprompt_zoo.banks.object_store import ObjectStore

        return ObjectStore(text, storage_options or {})
    if storage_options is not None:
        raise ValueError(f"storage_options were given for the folder {text}; they are for addresses such as s3://…")
    from softprompt_zoo.banks.folder_store import FolderStore

    return FolderStore(text, max_bytes, is_new_allowed)
