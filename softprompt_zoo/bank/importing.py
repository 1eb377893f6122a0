"""Reading folders of saved prompts into a bank."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.bank.names import check_name
from softprompt_zoo.bank.verification import BAR_AFTER
from softprompt_zoo.errors import CheckpointError, ZooError
from softprompt_zoo.files.formats import find_format, format_of, read_folder, warn_of_adapters
from softprompt_zoo.prompt.prompt import Prompt

Names = Mapping[tuple[Path, str], str]
"""A prompt's name in the bank, by its folder and its name there."""
Problems = dict[Path, ZooError]
"""Why a folder could not be read."""


def names_in_bank(path: Path, problems: Problems) -> Names:
    """Find the saved prompts in a folder without reading them.

    Args:
        path: A folder of folders, or one that holds prompts itself.
        problems: Receives the folders whose index is damaged.

    Returns:
        The name of each in the bank.

    Raises:
        CheckpointError: If there is none, or the index of the only folder is damaged.
        ValueError: If a name is not allowed, or two prompts would get the same one.
    """
    folders = _saved_in(path)
    is_one = folders == [path]
    found = {}
    for one in folders:
        with _noted(one, None if is_one else problems):
            found[one] = format_of(one).names(one)
    names = _name(found, is_one)
    if not names and not problems:
        raise CheckpointError(
            f"{path} holds no saved prompt; expected folders written by save_pretrained, export or PEFT"
        )
    return names


def read_folders(
    path: Path, names: Names, backbone: Backbone, form: Callable[[str, Prompt], Prompt], problems: Problems
) -> Iterator[tuple[str, Prompt]]:
    """Read saved prompts, a folder at a time.

    Args:
        path: What `names_in_bank` was given.
        names: What it returned.
        backbone: Sizes of the bank's model.
        form: Maps a name in the bank and a prompt to the prompt as it is stored.
        problems: Receives the folders in `path` that cannot be read; they are skipped.

    Yields:
        Name in the bank, and prompt.

    Raises:
        CheckpointError: If `path` is the only folder and is damaged, or none in it can be read.
    """
    from transformers.utils.logging import tqdm

    read = 0
    groups = [(one, [*group]) for one, group in itertools.groupby(names, lambda source: source[0])]
    for one, group in tqdm(groups, desc="importing prompts", unit="folder", leave=False, delay=BAR_AFTER):
        stored: list[tuple[str, Prompt]] = []
        with _noted(one, None if one == path else problems):
            found, _ = read_folder(one, backbone)
            warn_of_adapters(one)
            own = [(names[source], found[source[1]]) for source in group if source[1] in found]
            stored = [(name, form(name, prompt)) for name, prompt in own]
        read += len(stored)
        yield from stored
    if not read:
        raise CheckpointError(f"no prompt in {path} can be read; {_list(problems)}")


class LeftOutWarning(UserWarning):
    """Some folders could not be read and are not in the bank."""


def warn_of_problems(path: Path, problems: Problems) -> None:
    """Warn of the folders that were skipped, with the reasons."""
    if problems:
        warnings.warn(
            f"{len(problems)} folders in {path} could not be read, the others were stored; {_list(problems)}",
            LeftOutWarning,
            stacklevel=3,
        )


def _list(problems: Problems) -> str:
    return "; ".join(f"{folder.name}: {type(error).__name__}: {error}" for folder, error in problems.items())


@contextlib.contextmanager
def _noted(folder: Path, problems: Problems | None) -> Iterator[None]:
    """Record a folder that cannot be read and continue; without `problems`, raise the error."""
    try:
        yield
    except ZooError as error:
        if problems is None:
            raise
        problems[folder] = error


def _name(found: Mapping[Path, Sequence[str]], is_one: bool) -> dict[tuple[Path, str], str]:
    """Choose a name for each prompt, by its folder and its name there; refuse the same name for two of them."""
    names = {
        (folder, name): name if is_one else _of_folder(folder, own, name)
        for folder, own in found.items()
        for name in own
    }
    _check_differ(names)
    return names


def _check_differ(names: Names) -> None:
    sources: dict[str, str] = {}
    for (folder, name), stored in names.items():
        check_name(stored, f", from {folder}")
        source = f"prompt {name!r} in {folder}"
        if stored in sources:
            raise ValueError(
                f"{sources[stored]} and {source} would both be stored as {stored!r}; rename one of the folders; "
                "nothing was stored"
            )
        sources[stored] = source


def _of_folder(folder: Path, own: Sequence[str], name: str) -> str:
    """Return the name of a prompt in one of several folders, after its folder, which may hold several."""
    return folder.name if len(own) == 1 else f"{folder.name}-{name}"


def _saved_in(path: Path) -> list[Path]:
    """List the folders with prompts: the path itself, or those in it."""
    if find_format(path):
        return [path]
    return [one for one in sorted(path.iterdir()) if find_format(one)] if path.is_dir() else []
