"""`export` and `import`: prompts in other libraries' files."""

from pathlib import Path
from typing import Annotated

import typer

from softprompt_zoo.cli.command import quiet
from softprompt_zoo.cli.use import Model, PromptFolder

Output = Annotated[Path, typer.Argument(help="Folder to write; made if missing.", metavar="OUTPUT")]


def export_prompt(
    model: Model,
    prompt_folder: PromptFolder,
    output: Output,
    to: Annotated[str, typer.Option(help="Format: peft.")] = "peft",
) -> None:
    """Write a prompt for another library."""
    from softprompt_zoo.saving import export, load
    from softprompt_zoo.training.base import Base

    _check(output)
    quiet()
    export(load(Base(model).load(), prompt_folder), output, to=to)
    typer.echo(f"wrote {output}, which peft.PeftModel.from_pretrained loads")


def import_prompt(
    model: Model,
    peft_folder: Annotated[Path, typer.Argument(help="A PEFT prompt adapter.", metavar="PEFT_FOLDER")],
    output: Output,
) -> None:
    """Turn a PEFT prompt adapter into a prompt of ours."""
    from softprompt_zoo.saving import load
    from softprompt_zoo.training.base import Base

    _check(output)
    quiet()
    load(Base(model).load(), peft_folder).save_pretrained(output)
    typer.echo(f"wrote {output}, which softprompt_zoo.load loads")


def _check(output: Path) -> None:
    """Refuse to mix two prompts' files in a folder, before a model is loaded."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"OUTPUT {str(output)!r} exists and is not an empty folder; give a new one")
