"""Arguments of a prompted model's `save_pretrained`: the prompts, and the keywords of transformers and PEFT.

Trainer, accelerate, sentence-transformers and `push_to_hub` pass keywords about files of weights. Those that do not
affect prompts are accepted; one that asks for different files is refused rather than ignored.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.hub.upload import Push
from softprompt_zoo.sites.prompts_argument import check_combination

WITHOUT_EFFECT = (
    "max_shard_size",
    "path_initial_model_for_weight_conversion",
    "save_embedding_layers",
    "save_function",
    "save_original_format",
    "save_peft_format",
    "token",
)
"""Keywords of transformers, PEFT and accelerate that never affect prompts, whatever their value."""
DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "distributed_checkpoint": (False, None),
    "safe_serialization": (True, None),
    "variant": (None,),
}
"""Maps keywords to their accepted values; other values ask for files that are not written."""
INSTEAD = {
    "distributed_checkpoint": "prompts are written as one file",
    "safe_serialization": "prompts are written as safetensors only; leave it out",
    "variant": "prompts have no variants; save them into a separate folder",
}


PUSH = ("commit_description", "commit_message", "create_pr", "private", "repo_id", "revision", "tags")
"""Keywords that require `push_to_hub=True`; `token` is accepted without it too."""


def take_push(keywords: dict[str, Any], directory: str | os.PathLike[str]) -> Push | None:
    """Remove the keywords about the hub from those of `save_pretrained`.

    Args:
        keywords: All arguments but the directory. Changed in place.
        directory: Where the prompts are saved; the repository is named after it unless `repo_id` is given.

    Returns:
        Where and how to push; `None` not to push.

    Raises:
        TypeError: If there are such keywords without `push_to_hub=True`.
    """
    given = {name: keywords.pop(name) for name in PUSH if name in keywords}
    if not keywords.pop("push_to_hub", None):
        if given:
            raise TypeError(
                f"save_pretrained got {next(iter(given))} without push_to_hub=True; add it, or leave it out"
            )
        return None
    name = given.pop("repo_id", None) or Path(directory).absolute().name
    return Push(repo_id=str(name), token=keywords.get("token"), **given)


def check_arguments(names: Any, keywords: Mapping[str, Any], there: Sequence[str]) -> tuple[str, ...]:
    """Check the arguments of `save_pretrained` before anything is written.

    Args:
        names: The prompts to save, a name or a list of names; `None` for all.
        keywords: The other keywords, including PEFT's `selected_adapters`, a synonym for `names`.
        there: Names of the model's prompts.

    Returns:
        The names of the prompts to save.

    Raises:
        TypeError: If a keyword is unknown, or names are given twice or are not names.
        UnknownPromptError: If the model lacks one.
        ValueError: If there are none, or one is named twice.
        UnsupportedError: If a keyword asks for files that are not written.
    """
    keywords = dict(keywords)
    what, chosen = _chosen(names, keywords.pop("selected_adapters", None))
    for keyword, value in keywords.items():
        _check_keyword(keyword, value)
    if chosen is None:
        return tuple(there)
    checked = check_combination(chosen, there, what)
    if not checked:
        raise ValueError(f"{what} is empty; name at least one prompt to save, or leave it out to save all")
    return checked


def _chosen(names: Any, selected: Any) -> tuple[str, Any]:
    """Return the keyword that names prompts, and its value."""
    if names is not None and selected is not None:
        raise TypeError(
            f"save_pretrained got names={names!r} and selected_adapters={selected!r}, which mean the same; give one of "
            "them"
        )
    return ("names", names) if selected is None else ("selected_adapters", selected)


def _check_keyword(keyword: str, value: Any) -> None:
    if keyword not in (*WITHOUT_EFFECT, *DEFAULTS):
        raise TypeError(
            f"save_pretrained got an unknown keyword {keyword!r}; a prompted model takes names, is_main_process, "
            "state_dict, and those of transformers and PEFT"
        )
    if keyword in DEFAULTS and value not in DEFAULTS[keyword]:
        raise UnsupportedError(f"save_pretrained({keyword}={value!r}) is not supported; {INSTEAD[keyword]}")
