"""Rows read by the package `datasets`: Parquet files, folders written by `save_to_disk`, data sets on the Hub."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import DataError, check_packages, one_line
from softprompt_zoo.examples.row import Row, listed

REMEDY = 'pip install "softprompt-zoo[data]"'
MARKS = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes into its folder, for several splits or for one."""


def read_parquet(path: Path) -> Iterator[Row]:
    """Read a Parquet file, a few rows at a time.

    Args:
        path: The file.

    Returns:
        The rows, in the order of the file.

    Raises:
        DataError: If it is not a Parquet file, or damaged.
        MissingPackageError: If `datasets` is not installed.
    """
    datasets = _datasets()
    try:
        table = datasets.load_dataset("parquet", data_files=_escaped(path), split="train", streaming=True)
        yield from _rows(table, str(path))
    except (ValueError, OSError) as error:  # of pyarrow, and of the Hub for a file that no longer exists
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is not a Parquet file, or is damaged ({one_line(error)}); write it again") from error


def is_saved(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in MARKS)


def read_saved(path: Path, split: str | None) -> Iterator[Row]:
    """Read a folder written by `save_to_disk`, without loading it into memory.

    Args:
        path: The folder.
        split: The split, if there are several; `"train"` by default.

    Returns:
        The rows.

    Raises:
        DataError: If it is damaged, or has no such split.
        MissingPackageError: If `datasets` is not installed.
    """
    datasets = _datasets()
    try:
        saved = datasets.load_from_disk(str(path))
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{path}: is damaged ({one_line(error)}); write it again with save_to_disk") from error
    yield from _rows(_split_of(saved, split, str(path)), str(path))


def read_hub(name: str, subset: str | None, split: str | None, *, streaming: bool) -> Iterator[Row]:
    """Read a data set on the Hub, or in its local cache.

    Args:
        name: Its name, such as `"user/set"`.
        subset: One of its subsets, which `datasets` calls configurations.
        split: One of its splits, `"train"` by default.
        streaming: Whether to read over the network during training rather than downloading it first.

    Returns:
        The rows.

    Raises:
        DataError: If it does not exist, cannot be reached, or has no such subset or split.
        MissingPackageError: If `datasets` is not installed.
    """
    datasets = _datasets()
    what = f"the data set {name!r}"
    try:
        found = datasets.load_dataset(name, subset, streaming=streaming)
        yield from _rows(_split_of(found, split, what), what)
    except (ConnectionError, FileNotFoundError) as error:
        raise DataError(_unreachable(what, error)) from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{what} cannot be read: {one_line(error)}; give --subset, or a file") from error


def _unreachable(what: str, error: Exception) -> str:
    """Return a message that says why a data set is unavailable: offline mode, or a failed download."""
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            return (
                f"{what} is neither a local file nor in the cache, and {variable} is set, so it cannot be downloaded; "
                "unset it, download the data set where there is a network, or give a file"
            )
    return (
        f"{what} is not a local file and could not be downloaded from the Hub ({one_line(error)}); check the name and "
        "the network, log in with `hf auth login` if it is private or gated, or give a file"
    )


def _datasets() -> Any:
    check_packages("reading this data needs", "datasets", remedy=REMEDY)
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _split_of(found: Any, split: str | None, what: str) -> Any:
    """Return a split; a data set without splits counts as one."""
    if not isinstance(found, Mapping):
        if split is not None:
            raise DataError(f"{what}: has no splits, but --split is {split!r}; leave it out")
        return found
    wanted = split or "train"
    if wanted not in found:
        raise DataError(f"{what}: has no split {wanted!r}; splits found: {listed(found)}; give one with --split")
    return found[wanted]


def _rows(table: Any, what: str) -> Iterator[Row]:
    """Yield the rows of a table, with numbered classes replaced by their names."""
    names = {column: _names(feature) for column, feature in (table.features or {}).items()}
    for number, values in enumerate(table, start=1):
        fields = {column: names.get(column, _same)(value) for column, value in values.items()}
        yield Row(f"{what}:{number}", fields, may_hold_lists=True)


def _names(feature: Any) -> Callable[[Any], Any]:
    """Return a function that replaces a column's class numbers by names; the identity for other columns."""
    import datasets

    match feature:
        case datasets.ClassLabel(names=known):
            return lambda value: value if value is None or value < 0 else known[value]
        case datasets.List(feature=inner):
            name = _names(inner)
            return lambda values: values if values is None else [name(value) for value in values]
        case _:
            return _same


def _same(value: Any) -> Any:
    return value


def _escaped(path: Path) -> str:
    """Return a path with wildcard characters escaped."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path))
