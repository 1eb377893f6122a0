"""`push`: upload a saved prompt to the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[
        Path,
        typer.Argument(help="Output of train or save_pretrained, or a PEFT prompt adapter.", metavar="PROMPT_FOLDER"),
    ],
    repository: Annotated[
        str, typer.Argument(help="Name on the Hub, such as user/repo; created if missing.", metavar="REPOSITORY")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; created if missing.")] = None,
    message: Annotated[str | None, typer.Option(help="First line of the commit message.")] = None,
) -> None:
    """Push a saved prompt and its model card to the Hugging Face Hub; needs no model, and pushes none."""
    if not folder.is_dir():
        raise ValueError(f"PROMPT_FOLDER {str(folder)!r} is not a folder; expected what train or save_pretrained wrote")
    from softprompt_zoo.files.hub.upload import Push
    from softprompt_zoo.training.sharing import push_prompt

    how = Push(repo_id=repository, private=private or None, revision=revision, commit_message=message)
    typer.echo(f"pushed {folder}: {push_prompt(folder, how).commit_url}")
