"""Pushing a folder of saved prompts to the Hugging Face Hub: one commit with the prompts' files, never a model's."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt_zoo.errors import HubError
from softprompt_zoo.files import peft_folder, prompt_folder
from softprompt_zoo.files.card import card_file

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

FILES = (prompt_folder.TENSOR_FILE, prompt_folder.INDEX_FILE, peft_folder.CONFIG_FILE, peft_folder.TENSOR_FILE)
"""What `save_pretrained` writes next to the card; other files in the folder are not pushed."""
ADAPTERS = "adapters/*/*"
"""The files of PEFT adapters."""
MODEL_FILES = ("config.json", prompt_folder.TENSOR_FILE)
"""Files that identify a model's repository if it has no index of prompts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Push:
    """Where and how to push prompts; `None` for huggingface_hub's defaults."""

    repo_id: str
    """Name of the repository; created if missing."""
    commit_message: str | None = None
    """First line of the commit."""
    commit_description: str | None = None
    """The rest of the commit message."""
    private: bool | None = None
    """Whether a new repository is private."""
    token: str | bool | None = None
    """The user's access token."""
    revision: str | None = None
    """Branch; created if missing."""
    create_pr: bool = False
    """Whether to open a pull request instead of committing."""
    tags: Sequence[str] | None = None
    """Tags to add to a card that is ours."""


def push_saved(save: Callable[[Path], None], push: Push) -> "CommitInfo":
    """Save prompts into a temporary folder and push it.

    Args:
        save: Writes the prompts into a folder.
        push: Where and how to push.

    Returns:
        huggingface_hub's description of the commit.

    Raises:
        HubError: If it cannot be pushed.
    """
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return push_folder(Path(folder), push)


def push_folder(folder: Path, push: Push, more: Mapping[str, bytes] | None = None) -> "CommitInfo":
    """Push the prompts of a folder and their card, but no other files in it.

    A card on the hub that its owner has changed is kept. Files of an earlier prompt that this one lacks are removed in
    the same commit.

    Args:
        folder: A folder that `save_pretrained` wrote.
        push: Where and how to push.
        more: Additional files, by their paths.

    Returns:
        huggingface_hub's description of the commit.

    Raises:
        HubError: If the hub cannot be reached or refuses it, or if the repository holds a model.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    from softprompt_zoo.files.hub.problems import writing

    api = HfApi(token=push.token)
    with writing(push.repo_id):
        name = api.create_repo(push.repo_id, private=push.private, exist_ok=True).repo_id
        if push.revision is not None:
            api.create_branch(name, branch=push.revision, exist_ok=True)
        there = set(api.list_repo_files(name, revision=push.revision))
        _check_place(name, there)
        contents = _contents(folder, api, name, push, there) | dict(more or {})
        added = [CommitOperationAdd(path, content) for path, content in contents.items()]
        gone = sorted(path for path in there if _is_ours(path) and path not in contents)
        return api.create_commit(
            name,
            [*added, *map(CommitOperationDelete, gone)],
            commit_message=push.commit_message or "Upload prompt",
            commit_description=push.commit_description,
            revision=push.revision,
            create_pr=push.create_pr,
        )


def _contents(folder: Path, api: "HfApi", name: str, push: Push, there: set[str]) -> dict[str, bytes | Path]:
    """Return what is pushed, by its path in the repository."""
    contents: dict[str, bytes | Path] = {path: folder / path for path in _files(folder)}
    card = card_file.read(folder)
    if card is not None and (not card_file.is_generated(card) or _may_replace(api, name, push.revision, there)):
        contents[card_file.NAME] = card_file.named(card_file.tagged(card, push.tags or ()), name).encode()
    return contents


def _may_replace(api: "HfApi", name: str, revision: str | None, there: set[str]) -> bool:
    """Return whether a repository has no card, or an unchanged one of ours."""
    if card_file.NAME not in there:
        return True
    return card_file.is_generated(Path(api.hf_hub_download(name, card_file.NAME, revision=revision)).read_text("utf-8"))


def _files(folder: Path) -> list[str]:
    """List the files of a folder that are pushed, besides its card."""
    paths = [folder / name for name in FILES] + sorted(folder.glob(ADAPTERS))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _is_ours(path: str) -> bool:
    return path in FILES or path.startswith("adapters/")


def _check_place(name: str, there: set[str]) -> None:
    """Refuse to overwrite a model with prompts."""
    found = next((file for file in MODEL_FILES if file in there), None)
    if found is not None and prompt_folder.INDEX_FILE not in there:
        raise HubError(
            f"{name!r} on the hub holds a model ({found}), whose weights prompts would replace; choose a new repository"
        )
