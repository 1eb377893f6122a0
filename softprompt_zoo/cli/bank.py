"""`bank import`, `bank list`, `bank verify`, `bank delete`: stores of very many prompts."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from softprompt_zoo.cli.command import console, quiet
from softprompt_zoo.cli.use import Model
from softprompt_zoo.errors import printable

Bank = Annotated[str, typer.Argument(help="Folder, or an fsspec address such as s3://bucket/bank.", metavar="BANK")]


def import_prompts(
    model: Model,
    bank: Bank,
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of saved and exported prompts and PEFT prompt adapters, or one of them.", metavar="FOLDER"
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace prompts that have the same name.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="Number format to store: float32, bfloat16 or float16; the prompt's if not given."),
    ] = None,
) -> None:
    """Put saved prompts into a bank, all that can be read; the bank is made if there is none."""
    import torch

    from softprompt_zoo.bank.bank import PromptBank
    from softprompt_zoo.bank.importing import LeftOutWarning
    from softprompt_zoo.bank.opening import check_installed
    from softprompt_zoo.config.checks import check_choice
    from softprompt_zoo.training.base import Base
    from softprompt_zoo.training.settings import DTYPES

    check_installed()  # before the model is read
    check_choice("dtype", dtype, (None, *DTYPES))
    if not folder.is_dir():  # said before a bank is made
        raise ValueError(f"FOLDER {str(folder)!r} is not a folder; expected saved prompts, or one of them")
    quiet()
    base = Base(model, progress=lambda line: typer.echo(line, err=True)).load()
    stored = PromptBank(bank, base, dtype=None if dtype is None else getattr(torch, dtype))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        names = stored.import_folder(folder, overwrite=overwrite)
    typer.echo(f"stored {len(names)} prompts in {bank}, which has {len(stored)} now")
    for one in told:
        console().print(str(one.message), style="red", markup=False, highlight=False, soft_wrap=True)
    if any(issubclass(one.category, LeftOutWarning) for one in told):
        raise typer.Exit(1)


def list_prompts(bank: Bank, prefix: Annotated[str, typer.Option(help="Only names that begin so.")] = "") -> None:
    """Print the names of a bank's prompts, one per line."""
    from softprompt_zoo.bank.bank import PromptBank

    for name in PromptBank(bank).names(prefix):
        typer.echo(printable(name))


def verify(bank: Bank) -> None:
    """Read every entry of a bank and name those that are damaged; exit code 1 if there are any."""
    from softprompt_zoo.bank.bank import PromptBank

    opened = PromptBank(bank)
    problems = opened.verify()
    for problem in problems.values():
        console().print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"{len(opened)} entries, {len(problems)} damaged")
    if problems:
        raise typer.Exit(1)


def delete(bank: Bank, names: Annotated[list[str], typer.Argument(help="Prompts.", metavar="NAME...")]) -> None:
    """Delete prompts from a bank, all or none."""
    from softprompt_zoo.bank.bank import PromptBank

    PromptBank(bank).delete(*names)
    typer.echo(f"deleted {len(names)} prompts from {bank}")
