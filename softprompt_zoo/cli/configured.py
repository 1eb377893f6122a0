"""What a command was told: by a configuration file, and by flags, which win."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


def told(context: typer.Context, config: Path | None, kind: Any, try_field: Callable[..., Any]) -> dict[str, Any]:
    """Put together what a configuration file and the command line say.

    Args:
        context: The call of a command whose parameters are named as the fields are.
        config: The file, if there is one; what was given beside it wins, of `--option` one by one.
        kind: The dataclass of the fields.
        try_field: Refuses one field of a file at a time, as `read_config` takes it.

    Returns:
        By name of the field.

    Raises:
        ValueError: If the file, or a flag that is given one by one, cannot be used.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    values = {name: _plain(value) for name, value in context.params.items() if name in names}
    written = _written(config, kind, try_field)
    values |= {name: value for name, value in written.items() if not is_given(context, name)}
    for name, (flag, parse) in BY_NAME.items():
        if name in names:
            values[name] = {**written.get(name, {}), **dict(map(parse, context.params[flag] or []))}
    return values


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether the user typed a parameter."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _written(config: Path | None, kind: Any, try_field: Callable[..., Any]) -> dict[str, Any]:
    """Return what a configuration file says; nothing if there is none."""
    if config is None:
        return {}
    from softprompt_zoo.config.config_file import read_config

    return read_config(config, kind, try_field)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def parse_option(text: str) -> tuple[str, Any]:
    """Read `name=value`.

    Args:
        text: As the user typed it.

    Returns:
        Name and value; what is not JSON is text.

    Raises:
        ValueError: If there is no `=` or no name, or the value is nested too deeply.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"--option is {text!r}; expected name=value, such as num_virtual_tokens=20")
    name = name.strip().replace("-", "_")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
    except RecursionError as error:
        raise ValueError(f"--option {name} is JSON that is nested too deeply ({value[:20]}…); give a value") from error


def parse_label_word(text: str) -> tuple[str, str]:
    """Read `label=word`.

    Args:
        text: As the user typed it.

    Returns:
        Label and word.

    Raises:
        ValueError: If there is no `=`, no label or no word.
    """
    label, _, word = text.rpartition("=")  # a label may have one, too
    if not label.strip() or not word.strip():
        raise ValueError(f"--label-word is {text!r}; expected label=word, such as positive=good")
    return label, word


def unescape(template: str) -> str:
    r"""Let a template have `\n` and `\t`, which shells do not type easily."""
    return template.replace("\\n", "\n").replace("\\t", "\t")


BY_NAME: dict[str, tuple[str, Callable[[str], tuple[str, Any]]]] = {
    "options": ("option", parse_option),
    "label_words": ("label_word", parse_label_word),
}
"""Settings that flags give one by one: the flag, and what reads its text."""
