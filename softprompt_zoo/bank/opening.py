"""Which store the address of a bank refers to."""

import os
from collections.abc import Mapping
from typing import Any

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.bank.header import read_header, write_header
from softprompt_zoo.bank.stores import Store
from softprompt_zoo.errors import BankError, check_packages


def check_address(address: str | os.PathLike[str]) -> str:
    """Return an address as a string.

    Args:
        address: A folder, or an fsspec address such as `s3://bucket/bank`.

    Raises:
        TypeError: If it is neither a string nor a path.
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


def check_installed() -> None:
    """Refuse to open a bank if packages of the extra `bank` are missing.

    Raises:
        MissingPackageError: If one is.
    """
    check_packages("a bank of prompts needs", "fsspec", "lmdb", "xxhash", remedy='pip install "softprompt-zoo[bank]"')


def open_bank(
    address: str,
    backbone: Backbone | None = None,
    max_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[Store, dict[str, Any]]:
    """Open a bank.

    Args:
        address: A folder, or an fsspec address such as `s3://bucket/bank`.
        backbone: Sizes of the model that a new bank is for; `None` not to create one. Not compared with an existing
            bank.
        max_bytes: Bound on a folder's size.
        storage_options: Options of the address's file system.

    Returns:
        Its store, and its description of the model it is for.

    Raises:
        ZooError: As `PromptBank` does.
    """
    check_installed()
    header = None if backbone is None else write_header(backbone)
    store = open_store(address, max_bytes, storage_options, is_new_allowed=header is not None)
    found = store.open_header(header)
    if found is None:
        raise BankError(f"there is no bank in {address}; create one with zoo.PromptBank({address!r}, model)")
    return store, read_header(found, address)


def open_store(
    text: str,
    max_bytes: int | None,
    storage_options: Mapping[str, Any] | None,
    is_new_allowed: bool,
) -> Store:
    """Find the store that an address refers to.

    Args:
        text: A folder, or an fsspec address such as `s3://bucket/bank`.
        max_bytes: Bound on a folder's size.
        storage_options: Options of the address's file system.
        is_new_allowed: Whether the folder may be created.

    Returns:
        The store; nothing has been read from it yet.

    Raises:
        ValueError: If an option belongs to the other kind of store.
        BankError: If the address cannot be used.
    """
    if "://" in text:
        if max_bytes is not None:
            raise ValueError(f"max_bytes is {max_bytes}; it is for folders, and {text} is an address; leave it out")
        from softprompt_zoo.bank.object_store import ObjectStore

        return ObjectStore(text, storage_options or {})
    if storage_options is not None:
        raise ValueError(
            f"storage_options were given for the folder {text}; they apply only to addresses such as s3://…"
        )
    from softprompt_zoo.bank.folder_store import FolderStore

    return FolderStore(text, max_bytes, is_new_allowed)
