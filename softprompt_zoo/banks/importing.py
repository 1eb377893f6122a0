"""Folders of saved prompts, read for a bank."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from softprompt_zoo.backbone import Backbone
from softprompt_zoo.banks.names import check_name
from softprompt_zoo.checkpoints import is_saved, read_prompts, saved_names, warn_of_adapters
from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.prompt import Prompt

Names = Mapping[tuple[Path, str], str]
"""What a prompt is called in the bank, by its folder and its own name there."""


def names_in_bank(path: Path) -> Names:
    """Find the saved prompts in a folder; none of them is read.

    Args:
        path: A folder of folders, or one that holds prompts itself.

    Returns:
        What each is called in the bank.

    Raises:
        CheckpointError: If there is none, or an index is damaged.
        ValueError: If a name is not allowed, or two prompts would get the same one.
    """
    folders = [path] if is_saved(path) else sorted(path.iterdir()) if path.is_dir() else []
    names = _name({one: saved_names(one) for one in folders if is_saved(one)}, is_one=folders == [path])
    if not names:
        raise CheckpointError(
            f"{path} holds no saved prompt; expected folders that save_pretrained, export or PEFT wrote"
        )
    return names


def read_folders(names: Names, backbone: Backbone) -> Iterator[tuple[str, Prompt]]:
    """Read saved prompts, a folder at a time.

    Args:
        names: From `names_in_bank`.
        backbone: Sizes of the bank's model.

    Yields:
        Name in the bank, and prompt.

    Raises:
        CheckpointError: If one is damaged, or for another model.
    """
    for one, group in itertools.groupby(names, lambda source: source[0]):
        found, _ = read_prompts(one, backbone)
        warn_of_adapters(one)
        yield from ((names[source], found[source[1]]) for source in group)


def _name(found: Mapping[Path, Sequence[str]], is_one: bool) -> dict[tuple[Path, str], str]:
    """Choose what each prompt of some folders is called, by folder and own name; refuse one name for two of them."""
    names = {
        (folder, name): name if is_one else folder.name if len(own) == 1 else f"{folder.name}-{name}"
        for folder, own in found.items()
        for name in own
    }
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
    return names
