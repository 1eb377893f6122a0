"""`evaluate` and `generate`: what a trained prompt does."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt_zoo.cli.command import console, quiet
from softprompt_zoo.cli.configured import unescape
from softprompt_zoo.config.checks import check_choice, check_positive_integer
from softprompt_zoo.files.hub.names import is_hub_name
from softprompt_zoo.training.settings import DEFAULT_TEMPLATE, DTYPES, OBJECTIVES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.training.base import Base
    from softprompt_zoo.training.objectives.objective import Objective

Model = Annotated[str, typer.Argument(help="Folder, name on the Hub, or smollm2.", metavar="MODEL")]
PromptFolder = Annotated[
    Path,
    typer.Argument(
        help="Output of train or save_pretrained, or a PEFT prompt adapter: a folder, or its name on the Hub.",
        metavar="PROMPT_FOLDER",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, for a prompt on the Hub.")]
Template = Annotated[str | None, typer.Option(help="As in train; the one from training if not given.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Number format: float32, bfloat16 or float16; if not given, bfloat16 if the machine supports it."
    ),
]


def evaluate(
    model: Model,
    prompt_folder: PromptFolder,
    data: Annotated[Path | None, typer.Option(help="As in train; the demo's test rows if not given.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data, if it has several.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a data set on the Hub that has several.")] = None,
    input_field: Annotated[str | None, typer.Option(help="Name of the input field.")] = None,
    target_field: Annotated[str | None, typer.Option(help="Name of the target field.")] = None,
    template: Template = None,
    handwritten: Annotated[
        str | None, typer.Option(help="Hand-written prompt to compare with; the one from training if not given.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Maximum length of a row in tokens; longer rows are left out.")] = 512,
    metric_rows: Annotated[int, typer.Option(help="Number of rows to generate answers for.")] = 10,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Compare a prompt with the bare model and a hand-written prompt."""
    from softprompt_zoo.examples import demo_data
    from softprompt_zoo.examples.reading import Reading
    from softprompt_zoo.examples.sources import Source

    check_positive_integer("max_length", max_length)
    check_positive_integer("metric_rows", metric_rows)
    prompt_folder = found(prompt_folder, revision)
    trained = trained_with(prompt_folder)
    source = Source(str(data or demo_data() / "test.jsonl"), split, subset)
    examples = [*Reading(source, form_of_run(prompt_folder), input_field, target_field)]
    from softprompt_zoo.training.evaluation import TRAINED, Evaluator
    from softprompt_zoo.training.objectives.objective import fitting
    from softprompt_zoo.training.report import print_samples, print_scores

    form = chosen_template(template, trained)
    objective, network = load_for(model, prompt_folder, form, dtype)
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
            metavar="PROMPT_FOLDER [TEXT]...",
            help="The prompt, then texts; without texts, lines are read from standard input.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer in tokens.")] = 100,
    template: Template = None,
    no_prompt: Annotated[
        bool, typer.Option("--no-prompt", help="Use the bare model; all arguments are texts.")
    ] = False,
    task: Annotated[
        str | None, typer.Option(help="Task of the texts, for a prompt that was trained on several.")
    ] = None,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Generate an answer to every text, one per line."""
    given = list(arguments or [])
    folder = None if no_prompt else found(_prompt_folder(given), revision)
    form = _template_for(folder, template)
    texts = _texts(given if no_prompt else given[1:])
    number = _task_of(folder, task)
    objective, network = load_for(model, folder, form, dtype)
    for line in _lines(objective, _for_task(network, number), texts, max_new_tokens):
        typer.echo(line)


def _lines(objective: "Objective[Any, Any]", network: Any, texts: list[str | None], most: int) -> Iterator[str]:
    """Yield the answer to every text as one line; a blank line for a blank text."""
    answers = iter(objective.answer(network, [text for text in texts if text is not None], most))
    for text in texts:
        yield "" if text is None else " ".join(next(answers).splitlines())


def _task_of(folder: Path | None, given: str | None) -> int | None:
    """Return the index of a task among those that a prompt was trained on; `None` if it has no tasks."""
    tasks: list[str] = [] if folder is None else run_of(folder).get("objective", {}).get("tasks", [])
    if not tasks and given is not None:
        raise ValueError(f"--task is {given!r}, but no prompt is used that was trained on several; leave it out")
    if tasks and given is None:
        raise ValueError(f"the prompt was trained on tasks, but --task is missing; give one of {', '.join(tasks)}")
    if given is None:
        return None
    check_choice("--task", given, tasks)
    return tasks.index(given)


def _for_task(network: Any, task: int | None) -> Any:
    from softprompt_zoo.training.objectives.tasks import OfTask

    return network if task is None else OfTask(network, task)


def _template_for(folder: Path | None, given: str | None) -> str:
    """Return the template that a prompt was trained with, unless the user gives one; check the folder first."""
    return chosen_template(given, {} if folder is None else trained_with(folder))


def _prompt_folder(arguments: list[str]) -> Path:
    if not arguments:
        raise ValueError("no PROMPT_FOLDER given; give one, or use the bare model with --no-prompt")
    return Path(arguments[0])


def _texts(given: list[str]) -> list[str | None]:
    """Return the texts to answer, by default the lines of stdin; a blank line is `None`."""
    texts: list[str | None] = [*given]
    texts = texts or _lines_of_stdin()
    if all(text is None for text in texts):
        raise ValueError("no TEXT given; give it after the folder, or pipe lines into the command")
    return texts


def _lines_of_stdin() -> list[str | None]:
    """Read lines; blank lines are kept, so that line 7 of the output answers line 7 of the input."""
    return [line.rstrip("\n") if line.strip() else None for line in sys.stdin]


def found(prompt_folder: Path, revision: str | None) -> Path:
    """Return the folder of a prompt; download it if it is the name of a repository on the Hub rather than a folder.

    Args:
        prompt_folder: Folder or name, as the user gave it.
        revision: Revision of the repository.
    """
    is_wanted = revision is not None or (not prompt_folder.exists() and is_hub_name(str(prompt_folder)))
    if not is_wanted:
        return prompt_folder
    from softprompt_zoo.files.formats import find_directory

    return find_directory(str(prompt_folder), revision)


def load_prompted(model: str, folder: Path | None, dtype: str | None) -> "tuple[Base, PreTrainedModel]":
    """Load a model, with a saved prompt if there is a folder.

    Args:
        model: Folder, name on the Hub, or smollm2.
        folder: The prompt; `None` for the bare model.
        dtype: Number format; `None` for the fastest one on this machine.

    Returns:
        The base with the tokenizer, and the model, of the class that the prompt was trained with.
    """
    objective, network = load_for(model, folder, DEFAULT_TEMPLATE, dtype)
    return objective.base, network


def load_for(
    model: str, folder: Path | None, template: str, dtype: str | None
) -> "tuple[Objective[Any, Any], PreTrainedModel]":
    """Load a model for the objective that a saved prompt was trained on.

    Args:
        model: Folder, name on the Hub, or smollm2.
        folder: The prompt; `None` for the bare model.
        template: Template that turns an input into a text.
        dtype: Number format; `None` for the fastest one on this machine.

    Returns:
        The objective of the training, or writing text if the folder does not say; and the model.
    """
    from softprompt_zoo.operations.load_and_export import load
    from softprompt_zoo.training.base import Base, fast_dtype
    from softprompt_zoo.training.objectives.kinds import recorded

    check_choice("dtype", dtype, (None, *DTYPES))
    quiet()
    base = Base(model, progress=lambda line: typer.echo(line, err=True))
    objective = recorded({} if folder is None else run_of(folder).get("objective", {}), base, template)
    network = objective.load(dtype or fast_dtype())
    return objective, network if folder is None else load(network, folder)


def trained_with(folder: Path) -> dict[str, Any]:
    """Return the settings of the run that trained a prompt; empty if its folder is not that of a run or checkpoint."""
    if not folder.is_dir():
        raise ValueError(f"PROMPT_FOLDER {str(folder)!r} is not a folder; expected what train or save_pretrained wrote")
    settings: dict[str, Any] = run_of(folder).get("settings", {})
    return settings


def run_of(folder: Path) -> dict[str, Any]:
    """Return the record of the run that trained a prompt; empty if its folder is not that of a run or checkpoint."""
    from softprompt_zoo.training.record import is_run, read_record

    run = folder.absolute().parent if folder.name.startswith("checkpoint-") else folder
    return read_record(run) if is_run(run) else {}


def form_of_run(folder: Path) -> str:
    """Return the form of the data that a prompt was trained on; pairs if unknown."""
    name = run_of(folder).get("objective", {}).get("name")
    return OBJECTIVES.get(name, "pairs")


def chosen_template(given: str | None, trained: dict[str, Any]) -> str:
    """Return the given template, or else that of the training."""
    from softprompt_zoo.examples import check_template

    template = unescape(given) if given is not None else str(trained.get("template", DEFAULT_TEMPLATE))
    check_template(template)
    return template
