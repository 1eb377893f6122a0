"""`new-plugin`: a package for your own method."""

import shlex
from pathlib import Path
from typing import Annotated

import typer


def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the method, such as my_method.", metavar="NAME")],
    output: Annotated[Path | None, typer.Option(help="Folder to write; softprompt-zoo-NAME here if not given.")] = None,
) -> None:
    """Create a package for your own method, with tests that pass right away."""
    from softprompt_zoo.testing.new_package import distribution, method_name, write_package

    canonical = method_name(name)
    folder = Path(distribution(canonical)) if output is None else output
    files = write_package(canonical, folder)
    module = next(file for file in files if file.endswith(".py") and "/" not in file)
    lines = [
        f"wrote {folder}: {', '.join(files)}",
        "",
        "next:",
        f"  cd {shlex.quote(str(folder))}",
        '  pip install -e ".[test]"',
        "  pytest",
        f"  softprompt-zoo show {canonical}",
        "",
        f"then put your equation into {module}",
    ]
    typer.echo("\n".join(lines))
