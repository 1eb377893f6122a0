"""The folder of a saved prompt that the user names: one that is here, or a repository on the Hugging Face Hub.

Of a repository only what a prompt needs is fetched, into huggingface_hub's own cache: first the files that say what it
holds, then that.
"""

import os
from pathlib import Path

from softprompt_zoo.errors import HubError
from softprompt_zoo.files import embeddings, keys_values, peft_folder, prompt_folder, vocabulary
from softprompt_zoo.files.hub.names import is_hub_name
from softprompt_zoo.files.reading import existing_directory

RECORD_FILE = "training.json"
"""What a training run says of itself, the template of its texts for instance."""
ADAPTERS = "adapters/*"
"""PEFT's adapters that were saved with prompts."""
NEEDED = {
    prompt_folder.INDEX_FILE: (prompt_folder.TENSOR_FILE, ADAPTERS),
    peft_folder.CONFIG_FILE: (peft_folder.TENSOR_FILE, peft_folder.PICKLED_FILE),
    embeddings.INDEX_FILE: (embeddings.TENSOR_FILE,),
    keys_values.INDEX_FILE: (keys_values.TENSOR_FILE,),
    vocabulary.INDEX_FILE: (vocabulary.TENSOR_FILE, vocabulary.SHARDS_FILE, "model-*.safetensors"),
}
"""The file that tells of a format, to what else is read of it; the first that is there counts."""


def find_directory(
    directory: str | os.PathLike[str], revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Return the folder of a saved prompt, which is fetched if it is a repository's name and no folder here.

    Args:
        directory: A folder, or as text the name of a repository.
        revision: Branch, tag or commit of the repository; its main branch by default.
        token: What the user is known by on the hub; by default what huggingface_hub knows.

    Returns:
        The folder.

    Raises:
        CheckpointError: If it is neither.
        HubError: If the repository cannot be fetched, or holds no prompt.
        TypeError: If it is neither a text nor a path.
        ValueError: If there is a revision of a folder.
    """
    if isinstance(directory, str) and is_hub_name(directory) and not os.path.exists(directory):
        return _fetch(directory, revision, token)
    path = existing_directory(directory)
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}, and {str(directory)!r} is a folder here, which has none; leave it out, or name "
            "a repository"
        )
    return path


def _fetch(name: str, revision: str | None, token: str | bool | None) -> Path:
    told = _snapshot(name, revision, token, [*NEEDED, RECORD_FILE])
    index = next((file for file in NEEDED if (told / file).is_file()), None)
    if index is None:
        raise HubError(
            f"{name!r} on the Hugging Face Hub holds no prompt: it has none of {', '.join(NEEDED)}; expected what "
            "push_to_hub, save_pretrained or export wrote, or a PEFT prompt adapter"
        )
    if index == peft_folder.CONFIG_FILE and not peft_folder.is_prompt(fields := peft_folder.read_config(told)):
        raise HubError(
            f"{name!r} on the Hugging Face Hub is a PEFT adapter of type {fields.get('peft_type')!r}, which is not a "
            "prompt; load it with PEFT"
        )
    return _snapshot(name, told.name, token, [index, RECORD_FILE, *NEEDED[index]])  # of the same commit


def _snapshot(name: str, revision: str | None, token: str | bool | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    from softprompt_zoo.files.hub.problems import reading

    with reading(name, revision, token, files):
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=files))
