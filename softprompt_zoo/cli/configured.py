"""The settings of a command, from a configuration file and from flags, which take precedence."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


def told(context: typer.Context, config: Path | None, kind: Any, try_field: Callable[..., Any]) -> dict[str, Any]:
    """Merge the settings from a configuration file and the command line.

    Args:
        context: The call of a command whose parameters have the same names as the fields.
        config: The file, if there is one; the command line takes precedence, for `--option` option by option.
        kind: The dataclass of the fields.
        try_field: Checks one field of the file at a time, as for `read_config`.

    Returns:
        Field name to value.

    Raises:
        ValueError: If the file or a repeatable flag cannot be used.
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
    """Return whether a parameter was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _written(config: Path | None, kind: Any, try_field: Callable[..., Any]) -> dict[str, Any]:
    """Return the settings in a configuration file; empty if there is none."""
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
        Name and value; a value that is not JSON is text.

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
        raise ValueError(f"--option {name} is JSON that is nested too deeply ({value[:20]}…); simplify it") from error


def parse_label_word(text: str) -> tuple[str, str]:
    """Read `label=word`.

    Args:
        text: As the user typed it.

    Returns:
        Label and word.

    Raises:
        ValueError: If there is no `=`, no label or no word.
    """
    label, _, word = text.rpartition("=")  # a label may contain = as well
    if not label.strip() or not word.strip():
        raise ValueError(f"--label-word is {text!r}; expected label=word, such as positive=good")
    return label, word


def unescape(template: str) -> str:
    r"""Replace `\n` and `\t` in a template, which are hard to type in a shell."""
    return template.replace("\\n", "\n").replace("\\t", "\t")


BY_NAME: dict[str, tuple[str, Callable[[str], tuple[str, Any]]]] = {
    "options": ("option", parse_option),
    "label_words": ("label_word", parse_label_word),
}
"""Settings that are given by repeatable flags: the flag, and the function that parses its text."""
