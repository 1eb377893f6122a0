"""Trying on a tiny model what a method's prompts can be merged and exported to, so that it is known before training."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from softprompt_zoo.cli.command import quiet
from softprompt_zoo.cli.tried_method import quietly, tried
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.peft_folder import CONFIG_FILE
from softprompt_zoo.operations.load_and_export import export, merge
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.testing.tokenizer import tiny_tokenizer


def describe_exports(method: LoadedMethod) -> list[str]:
    """Try the formats to which the prompts of a method with its example options can be converted.

    Args:
        method: The method.

    Returns:
        A line about what was tried, and one for each answer.
    """
    quiet()
    with quietly():
        try:
            subject = tried(method, {})
        except (UnsupportedError, TypeError, ValueError) as error:
            return [f"not tried: {error}"]
        options = ", ".join(f"{name}={value!r}" for name, value in method.example_options[0].items()) or "its defaults"
        forms: dict[str, list[str]] = {}
        for form, answer in _answers(subject.model):
            forms.setdefault(answer, []).append(form)
    found = [f"{', '.join(alike)}: {answer}" for answer, alike in forms.items()]
    return [f"tried on a tiny {subject.architecture} with {options}; other models and options may differ", *found]


def _answers(model: Any) -> Iterator[tuple[str, str]]:
    """Yield each format and whether prompts can be converted to it; merges the model's prompt in the end."""
    task = None if model.prompts["default"].config.tasks is None else 0
    yield "PEFT", _answer(functools.partial(_peft_type, model))
    for form, more in {"vocabulary": {"tokenizer": tiny_tokenizer()}, "embeddings": {}, "kv": {}}.items():
        yield form, _answer(functools.partial(_export, model, form, task=task, **more))
    yield "merge", _answer(functools.partial(merge, model))


def _answer(make: Callable[[], Any]) -> str:
    try:
        made = make()
    except UnsupportedError as error:
        return f"no; {error}"
    return made if isinstance(made, str) else "yes"


def _export(model: Any, form: str, **how: Any) -> None:
    with TemporaryDirectory() as folder:
        export(model, Path(folder), to=form, **how)


def _peft_type(model: Any) -> str:
    with TemporaryDirectory() as folder:
        export(model, Path(folder), to="peft")
        return str(json.loads((Path(folder) / CONFIG_FILE).read_text("utf-8"))["peft_type"])
