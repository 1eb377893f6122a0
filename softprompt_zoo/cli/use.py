"""`evaluate` and `generate`: what a trained prompt does."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt_zoo.cli.command import console, quiet
from softprompt_zoo.cli.train import unescape
from softprompt_zoo.config.checks import check_choice, check_positive_integer
from softprompt_zoo.files.hub.names import is_hub_name
from softprompt_zoo.training.settings import DEFAULT_TEMPLATE, DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base

Model = Annotated[str, typer.Argument(help="Folder, hub name, or smollm2.", metavar="MODEL")]
PromptFolder = Annotated[
    Path,
    typer.Argument(
        help="What train or save_pretrained wrote, or a PEFT prompt adapter: a folder, or its name on the hub.",
        metavar="PROMPT_FOLDER",
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit, of a prompt that is named by its repository on the hub.")
]
Template = Annotated[str | None, typer.Option(help="As in train; the one it was trained with if not given.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Number format: float32, bfloat16 or float16; if not given, bfloat16 where the machine supports it."
    ),
]


def evaluate(
    model: Model,
    prompt_folder: PromptFolder,
    data: Annotated[Path | None, typer.Option(help="JSONL or CSV file; the demo's test rows if not given.")] = None,
    input_field: Annotated[str | None, typer.Option(help="Field of the input.")] = None,
    target_field: Annotated[str | None, typer.Option(help="Field of the target.")] = None,
    template: Template = None,
    handwritten: Annotated[
        str | None, typer.Option(help="Hand-written prompt to compare with; the one from training if not given.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are left out.")] = 512,
    metric_rows: Annotated[int, typer.Option(help="Rows to write answers for.")] = 10,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Measure a prompt against the bare model and a hand-written prompt."""
    from softprompt_zoo.examples import demo_data, read_examples

    check_positive_integer("max_length", max_length)
    check_positive_integer("metric_rows", metric_rows)
    prompt_folder = found(prompt_folder, revision)
    trained = trained_with(prompt_folder)
    examples = read_examples(data or demo_data() / "test.jsonl", input_field=input_field, target_field=target_field)
    from softprompt_zoo.training.evaluation import TRAINED, Evaluator
    from softprompt_zoo.training.objectives.objective import fitting
    from softprompt_zoo.training.objectives.writing import Writing
    from softprompt_zoo.training.report import print_samples, print_scores

    base, network = load_prompted(model, prompt_folder, dtype)
    objective = Writing(base.tokenizer, base.is_encoder_decoder, chosen_template(template, trained))
    kept = fitting(objective, examples, max_length, "evaluation")
    evaluator = Evaluator(kept, objective, metric_rows, handwritten or trained.get("handwritten"))
    evaluator.try_out(network)
    out = console()
    if len(kept) < len(examples):
        left_out = len(examples) - len(kept)
        out.print(f"left out {left_out} rows of more than --max-length {max_length}", style="yellow")
    scores = [evaluator.score(name, network, out.print) for name in (*evaluator.untrained, TRAINED)]
    print_samples(out, scores, evaluator)
    out.print()
    print_scores(out, scores, evaluator)


def generate(
    model: Model,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT_FOLDER [TEXT]...", help="The prompt, then texts; lines of stdin if there are none."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 100,
    template: Template = None,
    no_prompt: Annotated[
        bool, typer.Option("--no-prompt", help="Use the bare model; all arguments are texts.")
    ] = False,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Write an answer to every text, one per line."""
    given = list(arguments or [])
    folder = None if no_prompt else found(_prompt_folder(given), revision)
    form = _template_for(folder, template)
    texts = _texts(given if no_prompt else given[1:])
    base, network = load_prompted(model, folder, dtype)
    for line in _lines(base, network, form, texts, max_new_tokens):
        typer.echo(line)


def _lines(base: "Base", network: Any, form: str, texts: list[str | None], max_new_tokens: int) -> Iterator[str]:
    """Answer every text in one line; a blank one with a blank one."""
    answers = iter(_answers(base, network, form, [text for text in texts if text is not None], max_new_tokens))
    for text in texts:
        yield "" if text is None else " ".join(next(answers).splitlines())


def _answers(base: "Base", network: Any, form: str, texts: list[str], max_new_tokens: int) -> list[str]:
    from softprompt_zoo.examples import Example
    from softprompt_zoo.training.base import check_tokens
    from softprompt_zoo.training.data import Row, Tokenized
    from softprompt_zoo.training.evaluation import generate as write_answers

    tokenized = Tokenized(base.tokenizer, base.is_encoder_decoder, form)
    ids = [tokenized.text_ids(Example(text, None)) for text in texts]
    check_tokens([Row(text, []) for text in ids], network)
    return write_answers(network, base.tokenizer, ids, max_new_tokens)


def _template_for(folder: Path | None, given: str | None) -> str:
    """Return the template that a prompt was trained with, unless the user gives one; checks the folder first."""
    return chosen_template(given, {} if folder is None else trained_with(folder))


def _prompt_folder(arguments: list[str]) -> Path:
    if not arguments:
        raise ValueError("no PROMPT_FOLDER given; name one, or use the bare model with --no-prompt")
    return Path(arguments[0])


def _texts(given: list[str]) -> list[str | None]:
    """Return the texts to answer, those of stdin where none is given; a blank line there is `None`."""
    texts: list[str | None] = [*given]
    texts = texts or _lines_of_stdin()
    if all(text is None for text in texts):
        raise ValueError("no TEXT given; write it after the folder, or pipe lines into the command")
    return texts


def _lines_of_stdin() -> list[str | None]:
    """Read lines; a blank one stays one, so that line 7 of the answers is that of line 7 of the texts."""
    return [line.rstrip("\n") if line.strip() else None for line in sys.stdin]


def found(prompt_folder: Path, revision: str | None) -> Path:
    """Return the folder of a prompt; one that is named by its repository on the hub, and not here, is fetched.

    Args:
        prompt_folder: As the user gave it.
        revision: Of the repository.
    """
    is_wanted = revision is not None or (not prompt_folder.exists() and is_hub_name(str(prompt_folder)))
    if not is_wanted:
        return prompt_folder
    from softprompt_zoo.files.hub.download import find_directory

    return find_directory(str(prompt_folder), revision)


def load_prompted(model: str, folder: Path | None, dtype: str | None) -> "tuple[Base, PreTrainedModel]":
    """Load a model, with a saved prompt if there is a folder.

    Args:
        model: Folder, hub name, or smollm2.
        folder: The prompt; `None` for the bare model.
        dtype: Number format; `None` for the one that is fastest here.

    Returns:
        The tokenizer's side, and the model.
    """
    from softprompt_zoo.operations.load_and_export import load
    from softprompt_zoo.training.base import Base, fast_dtype

    check_choice("dtype", dtype, (None, *DTYPES))
    quiet()
    base = Base(model, progress=lambda line: typer.echo(line, err=True))
    network = base.load(dtype or fast_dtype())
    return base, network if folder is None else load(network, folder)


def trained_with(folder: Path) -> dict[str, Any]:
    """Settings of the run that made a prompt, if it lies in the folder of one, as a run's checkpoints do."""
    if not folder.is_dir():
        raise ValueError(f"PROMPT_FOLDER {str(folder)!r} is not a folder; expected what train or save_pretrained wrote")
    from softprompt_zoo.training.record import is_run, read_record

    run = folder.absolute().parent if folder.name.startswith("checkpoint-") else folder
    settings: dict[str, Any] = read_record(run)["settings"] if is_run(run) else {}
    return settings


def chosen_template(given: str | None, trained: dict[str, Any]) -> str:
    """Return the template that was given, or that of the training."""
    from softprompt_zoo.examples import check_template

    template = unescape(given) if given is not None else str(trained.get("template", DEFAULT_TEMPLATE))
    check_template(template)
    return template
