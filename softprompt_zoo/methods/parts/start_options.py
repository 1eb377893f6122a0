"""Checks of the options that choose a prompt's initial values."""

import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from softprompt_zoo.config.options import GIVEN


def check_init(init: Any, allowed: Sequence[str], init_text: str | None, labels: Any, tokenizer: Any) -> Any:
    """Check that the options for the initial values are consistent, and resolve the default.

    Args:
        init: One of `allowed`, a prompt or the folder of a saved one; `None` for the default.
        allowed: The names that the method accepts.
        init_text: Text for `"text"`.
        labels: Class labels for `"labels"`.
        tokenizer: Needed for both; allowed if not needed.

    Returns:
        The resolved `init`. The default follows `init_text` or `labels`, and is `"sampled"` without them.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If a required option is missing, an unused one is given, or `init` is not allowed.
    """
    uses = {"text": ("init_text", init_text), "labels": ("labels", labels)}
    init = _default(uses) if init is None else init
    if isinstance(init, str) and init == GIVEN:
        return init
    _check_kind(init, allowed)
    _check_text(init_text)
    _check_labels(labels)
    for use, (name, value) in uses.items():
        _check_use(name, value, tokenizer, init, is_needed=use == init)
    return init


def _check_use(name: str, value: Any, tokenizer: Any, init: Any, is_needed: bool) -> None:
    if is_needed:
        _check_needed(init, name, value, tokenizer)
    else:
        _check_unused(name, value, init)


def _check_kind(init: Any, allowed: Sequence[str]) -> None:
    """Refuse anything that is not a name, a folder or a prompt."""
    names = ", ".join(map(repr, allowed))
    choices = f"expected one of {names}, the folder of a saved prompt, or a prompt, model.prompts[name]"
    if _is_prompt(init):
        return
    if not isinstance(init, str | os.PathLike):
        raise TypeError(f"init is {_short(init)} ({type(init).__name__}); {choices}")
    if init not in allowed and not os.path.isdir(init):
        raise ValueError(f"init is {str(init)!r}; {choices}")


def _check_text(text: Any) -> None:
    if text is not None and not isinstance(text, str):
        raise TypeError(f"init_text is {_short(text)} ({type(text).__name__}); expected one text")


def _check_labels(labels: Any) -> None:
    if labels is not None and (isinstance(labels, str) or not all(isinstance(label, str) for label in labels)):
        raise TypeError(f"labels is {labels!r}; expected a sequence of texts, one per class")


def _check_needed(init: str, name: str, value: Any, tokenizer: Any) -> None:
    if not value:
        raise ValueError(f"init={init!r} needs {name}, which is {value!r}")
    if tokenizer is not None and not callable(tokenizer):
        raise TypeError(f"tokenizer is {type(tokenizer).__name__}; expected a transformers tokenizer")


def _check_unused(name: str, value: Any, init: Any) -> None:
    if value is not None:
        shown = "another prompt" if _is_prompt(init) else repr(str(init))
        raise ValueError(f"{name} is {value!r}, but init, which is {shown}, does not use it; leave one of them out")


def _is_prompt(init: Any) -> bool:
    return hasattr(init, "merged_tokens")


def _short(value: Any) -> str:
    """Shorten any value, even a model, to a part of a line."""
    return " ".join(reprlib.repr(value).split())


def _default(uses: Mapping[str, tuple[str, Any]]) -> str:
    """Return the `init` that uses the given values."""
    return next((use for use, (_, value) in uses.items() if value is not None), "sampled")
