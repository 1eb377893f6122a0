"""`bank add`, `bank import`, `bank list`, `bank verify` and `bank delete`: stores of very many prompts."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt_zoo.cli.command import console, quiet
from softprompt_zoo.cli.use import Model, PromptFolder, Revision, found
from softprompt_zoo.errors import printable

if TYPE_CHECKING:
    import torch

    from softprompt_zoo.backbone.backbone import Backbone
    from softprompt_zoo.prompt.prompt import Prompt
    from softprompt_zoo.training.base import Base

Bank = Annotated[str, typer.Argument(help="Folder, or an fsspec address such as s3://bucket/bank.", metavar="BANK")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace prompts that have the same name.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Number format for storage: float32, bfloat16 or float16; the prompt's own if not given."),
]


def add(
    model: Model,
    bank: Bank,
    prompt_folder: PromptFolder,
    name: Annotated[str | None, typer.Option(help="Name in the bank; the folder's name if not given.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompt in the folder to add; may be repeated. The active ones if not given."),
    ] = None,
    task: Annotated[int | None, typer.Option(help="The task to store, if the prompt has several.")] = None,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Add a saved prompt to a bank as a prefix that engines serve by name; the bank is created if missing."""
    from softprompt_zoo.bank.bank import PromptBank
    from softprompt_zoo.bank.names import check_name
    from softprompt_zoo.model.engine_prefix import engine_prefix
    from softprompt_zoo.model.plain_prefix import PrefixMaker
    from softprompt_zoo.operations.fold import combination_of
    from softprompt_zoo.operations.load_and_export import load

    base, stored_dtype = _prepared(model, dtype)
    chosen = prompt_folder.resolve().name if name is None else name
    check_name(chosen, ", from PROMPT_FOLDER; choose one with --name" if name is None else "")
    folder = found(prompt_folder, revision)
    network: Any = load(base.load(), folder)
    prompts = {part: network.prompts[part] for part in combination_of(network.prompts, prompt or None, task)}
    prefix = engine_prefix(PrefixMaker.of(network), prompts, task)  # fail before the bank is created
    stored = PromptBank(bank, network, dtype=stored_dtype)
    stored.add(chosen, prefix, overwrite=overwrite)
    made = f"a prefix of {prefix.num_virtual_tokens} tokens{_sources(prompts, network.prompts.backbone)}"
    typer.echo(f"stored {chosen} in {bank}, which has {len(stored)} now: {made}")


def _sources(prompts: "Mapping[str, Prompt]", backbone: "Backbone") -> str:
    """Return a description of what a prefix was folded from; empty if it was a single prefix."""
    is_input = any(prompt.merged_tokens(backbone).at(backbone.kind.site) is None for prompt in prompts.values())
    parts = ", ".join(f"{name!r} ({prompt.method})" for name, prompt in prompts.items())
    return f", folded from {parts}" if is_input or len(prompts) > 1 else ""


def _prepared(model: str, dtype: str | None) -> "tuple[Base, torch.dtype | None]":
    """Check everything that can be checked before the model is loaded."""
    import torch

    from softprompt_zoo.bank.opening import check_installed
    from softprompt_zoo.config.checks import check_choice
    from softprompt_zoo.training.base import Base
    from softprompt_zoo.training.settings import DTYPES

    check_installed()
    check_choice("dtype", dtype, (None, *DTYPES))
    quiet()
    base = Base(model, progress=lambda line: typer.echo(line, err=True))
    return base, None if dtype is None else getattr(torch, dtype)


def import_prompts(
    model: Model,
    bank: Bank,
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of saved and exported prompts and PEFT prompt adapters, or one of them.", metavar="FOLDER"
        ),
    ],
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    as_prefix: Annotated[
        bool, typer.Option("--as-prefix", help="Store each as a prefix that engines can serve, as bank add does.")
    ] = False,
) -> None:
    """Add all readable saved prompts in a folder to a bank; the bank is created if missing."""
    from softprompt_zoo.bank.bank import PromptBank
    from softprompt_zoo.bank.importing import LeftOutWarning

    base, stored_dtype = _prepared(model, dtype)
    if not folder.is_dir():  # fail before the bank is created
        raise ValueError(f"FOLDER {str(folder)!r} is not a folder; expected a folder of saved prompts, or one prompt")
    stored = PromptBank(bank, base.load(), dtype=stored_dtype, as_prefix=as_prefix)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        names = stored.import_folder(folder, overwrite=overwrite)
    typer.echo(f"stored {len(names)} prompts in {bank}, which has {len(stored)} now")
    for one in told:
        console().print(str(one.message), style="red", markup=False, highlight=False, soft_wrap=True)
    if any(issubclass(one.category, LeftOutWarning) for one in told):
        raise typer.Exit(1)


def list_prompts(
    bank: Bank, prefix: Annotated[str, typer.Option(help="List only names that start with this.")] = ""
) -> None:
    """Print the names of a bank's prompts, one per line."""
    from softprompt_zoo.bank.bank import PromptBank

    for name in PromptBank(bank).names(prefix):
        typer.echo(printable(name))


def verify(bank: Bank) -> None:
    """Read every entry of a bank and list the damaged ones; exit code 1 if there are any."""
    from softprompt_zoo.bank.bank import PromptBank

    opened = PromptBank(bank)
    problems = opened.verify()
    for problem in problems.values():
        console().print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"{len(opened)} entries, {len(problems)} damaged")
    if problems:
        raise typer.Exit(1)


def delete(
    bank: Bank, names: Annotated[list[str], typer.Argument(help="Names of the prompts.", metavar="NAME...")]
) -> None:
    """Delete prompts from a bank, all or none of them."""
    from softprompt_zoo.bank.bank import PromptBank

    PromptBank(bank).delete(*names)
    typer.echo(f"deleted {len(names)} prompts from {bank}")
