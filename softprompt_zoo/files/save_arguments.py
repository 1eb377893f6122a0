"""What `save_pretrained` of a prompted model is called with: which prompts, and transformers' and PEFT's keywords.

Trainer, accelerate, sentence-transformers and `push_to_hub` pass keywords that are about files of weights. Those that
change nothing for prompts are taken; one that asks for other files is refused, not swallowed.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.hub.upload import Push
from softprompt_zoo.sites.select import check_combination

WITHOUT_EFFECT = (
    "max_shard_size",
    "path_initial_model_for_weight_conversion",
    "save_embedding_layers",
    "save_function",
    "save_original_format",
    "save_peft_format",
    "token",
)
"""Keywords of transformers, PEFT and accelerate that change nothing for prompts, whatever their value."""
DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "distributed_checkpoint": (False, None),
    "safe_serialization": (True, None),
    "variant": (None,),
}
"""Keywords whose other values ask for what is not written, and the values that do not."""
INSTEAD = {
    "distributed_checkpoint": "prompts are written as one file",
    "safe_serialization": "prompts are written as safetensors only; leave it out",
    "variant": "prompts have no variants; save them into a folder of their own",
}


PUSH = ("commit_description", "commit_message", "create_pr", "private", "repo_id", "revision", "tags")
"""Keywords that only `push_to_hub=True` makes sense of; `token` is taken without it, too."""


def take_push(keywords: dict[str, Any], directory: str | os.PathLike[str]) -> Push | None:
    """Take what is said of the hub out of the keywords of `save_pretrained`.

    Args:
        keywords: All but the directory. Changed: what is taken is gone.
        directory: Where is saved; the repository is called like it if no `repo_id` says otherwise.

    Returns:
        What shall be pushed, and how; `None` for nothing.

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
    """Check what `save_pretrained` was called with, before anything is written.

    Args:
        names: The prompts to save, a name or a list of names; `None` for all.
        keywords: The other keywords, PEFT's `selected_adapters` among them, which is another word for `names`.
        there: Names of the model's prompts.

    Returns:
        The names of the prompts to save.

    Raises:
        TypeError: If a keyword is unknown, or names are given twice or are not names.
        UnknownPromptError: If one is not there.
        ValueError: If there are none, or one is named twice.
        UnsupportedError: If a keyword asks for other files than are written.
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
    """Return the keyword that names prompts, and what it names."""
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
