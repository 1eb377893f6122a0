"""The folder of a saved prompt that the user names: a local one, or a repository on the Hugging Face Hub.

Only the files that a prompt needs are fetched, into huggingface_hub's own cache: first those that say what the
repository holds, then the content.
"""

import os
from pathlib import Path

from softprompt_zoo.errors import HubError
from softprompt_zoo.files import embeddings, keys_values, peft_folder, prompt_folder, vocabulary
from softprompt_zoo.files.hub.names import is_hub_name
from softprompt_zoo.files.reading import existing_directory

RECORD_FILE = "training.json"
"""A training run's record, including the template of its texts."""
ADAPTERS = "adapters/*"
"""PEFT adapters that were saved with prompts."""
NEEDED = {
    prompt_folder.INDEX_FILE: (prompt_folder.TENSOR_FILE, ADAPTERS),
    peft_folder.CONFIG_FILE: (peft_folder.TENSOR_FILE, peft_folder.PICKLED_FILE),
    embeddings.INDEX_FILE: (embeddings.TENSOR_FILE,),
    keys_values.INDEX_FILE: (keys_values.TENSOR_FILE,),
    vocabulary.INDEX_FILE: (vocabulary.TENSOR_FILE, vocabulary.SHARDS_FILE, "model-*.safetensors"),
}
"""Maps the file that identifies a format to the other files it needs; the first one that exists counts."""


def find_directory(
    directory: str | os.PathLike[str], revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Return the folder of a saved prompt, fetching it if it names a repository and no local folder.

    Args:
        directory: A folder, or the name of a repository as a string.
        revision: Branch, tag or commit of the repository; its main branch by default.
        token: Access token for the hub; by default the one that huggingface_hub has stored.

    Returns:
        The folder.

    Raises:
        CheckpointError: If it is neither.
        HubError: If the repository cannot be fetched, or holds no prompt.
        TypeError: If it is neither a string nor a path.
        ValueError: If a revision is given for a folder.
    """
    if isinstance(directory, str) and is_hub_name(directory) and not os.path.exists(directory):
        return _fetch(directory, revision, token)
    path = existing_directory(directory)
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}, but {str(directory)!r} is a local folder, which has none; leave it out, or "
            "name a repository"
        )
    return path


def _fetch(name: str, revision: str | None, token: str | bool | None) -> Path:
    told = _snapshot(name, revision, token, [*NEEDED, RECORD_FILE])
    index = next((file for file in NEEDED if (told / file).is_file()), None)
    if index is None:
        raise HubError(
            f"{name!r} on the Hugging Face Hub holds no prompt: it has none of {', '.join(NEEDED)}; expected the "
            "files of push_to_hub, save_pretrained or export, or a PEFT prompt adapter"
        )
    if index == peft_folder.CONFIG_FILE and not peft_folder.is_prompt(fields := peft_folder.read_config(told)):
        raise HubError(
            f"{name!r} on the Hugging Face Hub is a PEFT adapter of type {fields.get('peft_type')!r}, which is not a "
            "prompt; load it with PEFT"
        )
    return _snapshot(name, told.name, token, [index, RECORD_FILE, *NEEDED[index]])  # from the same commit


def _snapshot(name: str, revision: str | None, token: str | bool | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    from softprompt_zoo.files.hub.problems import reading

    with reading(name, revision, token, files):
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=files))
