"""`export` and `import`: prompts in the file formats of other libraries."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt_zoo.cli.command import quiet
from softprompt_zoo.cli.use import Model, PromptFolder, Revision, found
from softprompt_zoo.config.checks import check_choice

if TYPE_CHECKING:
    from softprompt_zoo.training.base import Base

Output = Annotated[Path, typer.Argument(help="Folder to write; created if missing.", metavar="OUTPUT")]
READERS = {
    "peft": "peft.PeftModel.from_pretrained loads",
    "vocabulary": "transformers, vLLM and others load as a model; soft_tokens.json lists the tokens to put in front",
    "embeddings": "has a README.md for vLLM and llama.cpp",
    "kv": "has a README.md for the cache of transformers; for vLLM, add it to a bank",
}
"""By format, what can read it; completes "wrote OUTPUT, which ..."."""


def export_prompt(
    model: Model,
    prompt_folder: PromptFolder,
    output: Output,
    to: Annotated[str, typer.Option(help="Format: peft, vocabulary, embeddings or kv.")] = "peft",
    name: Annotated[
        list[str] | None, typer.Option(help="Prompt to export; may be repeated. The active ones if not given.")
    ] = None,
    task: Annotated[int | None, typer.Option(help="The task to export, if the prompt has several.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer for vocabulary: folder or name on the Hub; the model's own if not given."),
    ] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Fold the prompts into one prefix first.")] = False,
    revision: Revision = None,
) -> None:
    """Write prompts for another library or engine."""
    from softprompt_zoo.operations.load_and_export import EXPORTS, export, load
    from softprompt_zoo.training.base import Base

    _check(output)
    check_choice("to", to, EXPORTS)
    _check_tokenizer(tokenizer, to)
    quiet()
    prompt_folder = found(prompt_folder, revision)
    base = Base(model)
    network = load(base.load(), prompt_folder)
    names: list[str] | None = name or None
    if fold:
        from softprompt_zoo.operations.fold import fold as fold_prompts

        fold_prompts(network, names, name=_free_name(network), task=task)
        names, task = None, None
    words = _tokenizer(tokenizer, base) if to == "vocabulary" else None
    export(network, output, to=to, name=names, task=task, tokenizer=words)
    typer.echo(f"wrote {output}, which {READERS[to]}")


def _free_name(network: Any) -> str:
    names = itertools.chain(("folded",), (f"folded_{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in network.prompts)


def _check_tokenizer(name: str | None, to: str) -> None:
    if name is not None and to != "vocabulary":
        raise ValueError(f"--tokenizer was given with --to {to}, which writes none; leave it out")


def _tokenizer(name: str | None, base: "Base") -> Any:
    """Load a tokenizer, by default the model's own."""
    from transformers import AutoTokenizer

    return base.tokenizer if name is None else AutoTokenizer.from_pretrained(name)


def import_prompt(
    model: Model,
    peft_folder: Annotated[
        Path, typer.Argument(help="A PEFT prompt adapter: a folder, or its name on the Hub.", metavar="PEFT_FOLDER")
    ],
    output: Output,
    revision: Revision = None,
) -> None:
    """Convert a PEFT prompt adapter to this package's format."""
    from softprompt_zoo.operations.load_and_export import load
    from softprompt_zoo.training.base import Base

    _check(output)
    folder = found(peft_folder, revision)
    quiet()
    load(Base(model).load(), folder).save_pretrained(output)
    typer.echo(f"wrote {output}, which softprompt_zoo.load loads")


def _check(output: Path) -> None:
    """Make sure, before a model is loaded, that the files of two prompts are not mixed in a folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"OUTPUT {str(output)!r} exists and is not an empty folder; give a new one")
