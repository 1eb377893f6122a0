"""Download a saved prompt from a repository on the Hugging Face Hub.

Only the files that a prompt needs are fetched, into huggingface_hub's own cache: first those that say what the
repository holds, then the content.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from softprompt_zoo.errors import HubError

RECORD_FILE = "training.json"
"""A training run's record, including the template of its texts."""


class Needed(Protocol):
    """A format of a prompt's files."""

    @property
    def index_file(self) -> str:
        """The file that identifies it."""

    @property
    def other_files(self) -> tuple[str, ...]:
        """Patterns of the other files that it may need."""

    def other_content(self, directory: Path) -> str | None:
        """Say what a folder with its index holds, if that is no prompt."""


def fetch(name: str, formats: Sequence[Needed], revision: str | None, token: str | bool | None) -> Path:
    """Download a saved prompt, and nothing else of its repository.

    Args:
        name: Name of the repository.
        formats: The formats; the first one whose index exists counts.
        revision: Branch, tag or commit; the main branch by default.
        token: Access token; by default the one that huggingface_hub has stored.

    Returns:
        The folder, in huggingface_hub's cache.

    Raises:
        HubError: If the repository cannot be fetched, or holds no prompt.
    """
    told = _snapshot(name, revision, token, [*(one.index_file for one in formats), RECORD_FILE])
    found = next((one for one in formats if (told / one.index_file).is_file()), None)
    if found is None:
        raise HubError(
            f"{name!r} on the Hugging Face Hub holds no prompt: it has none of "
            f"{', '.join(one.index_file for one in formats)}; expected the files of push_to_hub, save_pretrained or "
            "export, or a PEFT prompt adapter"
        )
    other = found.other_content(told)
    if other is not None:
        raise HubError(f"{name!r} on the Hugging Face Hub is {other}; load it with the library that wrote it")
    return _snapshot(name, told.name, token, [found.index_file, RECORD_FILE, *found.other_files])  # of the same commit


def _snapshot(name: str, revision: str | None, token: str | bool | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    from softprompt_zoo.files.hub.problems import reading

    with reading(name, revision, token, files):
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=files))
