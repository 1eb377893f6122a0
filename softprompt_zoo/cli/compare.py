"""`compare`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from softprompt_zoo.cli.command import console, quiet
from softprompt_zoo.cli.train import parse_label_word, unescape
from softprompt_zoo.training.comparison.choices import BASELINES, QUICK, SHOTS, Choices, read_list, read_rate
from softprompt_zoo.training.comparison.running.choice import Running
from softprompt_zoo.training.settings import DEMO_HANDWRITTEN, OBJECTIVES, Settings

PROGRAM = "softprompt-zoo"
T = TypeVar("T")
D = TypeVar("D", tuple[str, ...], None)


def compare(
    model: Annotated[str, typer.Argument(help="Folder, hub name, or smollm2.")] = "smollm2",
    data: Annotated[
        str | None, typer.Option(help="File, saved data set or hub name, as of train; the demo's if not given.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="The same; a tenth of --data, at most 100 rows, if not given.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of --data that is trained on, where it has several.")] = None,
    validation_split: Annotated[
        str | None, typer.Option(help="Part of the data that is measured on, where they have several.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Subset of a data set on the hub.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results and the report.")] = Path("comparison"),
    methods: Annotated[
        str | None, typer.Option(help="Names or aliases, separated by commas; all that fit the model if not given.")
    ] = None,
    baselines: Annotated[
        str, typer.Option(help="What methods are compared with, separated by commas; none for none.")
    ] = ",".join(BASELINES),
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas; 0,1,2 if not given.")] = None,
    learning_rates: Annotated[
        str,
        typer.Option(help="Peak learning rates, separated by commas: 0.03, or 2x for twice each candidate's own."),
    ] = "1x",
    lengths: Annotated[
        str | None, typer.Option(help="Numbers of virtual tokens, separated by commas; each method's own if not given.")
    ] = None,
    starts: Annotated[
        str | None, typer.Option(help="Start values, as the option init takes them; each method's own if not given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each training; 200 if not given.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 8,
    rows: Annotated[int | None, typer.Option(help="Training rows at most.")] = None,
    validation_rows: Annotated[int | None, typer.Option(help="Validation rows at most.")] = None,
    parameters: Annotated[
        int | None, typer.Option(help="Parameters that each is to train, nearly; sizes are chosen so.")
    ] = None,
    shots: Annotated[int, typer.Option(help="Examples of a few-shot prompt at most.")] = SHOTS,
    handwritten: Annotated[
        str | None, typer.Option(help="Hand-written prompt to compare with; the demo has one of its own.")
    ] = None,
    input_field: Annotated[str | None, typer.Option(help="Field of the input.")] = None,
    target_field: Annotated[str | None, typer.Option(help="Field of the target.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(help=f"What is learned: {', '.join(OBJECTIVES)}; found by the data and the model if not given."),
    ] = None,
    label_word: Annotated[
        list[str] | None,
        typer.Option(help="Word of a label, label=word, for --objective label-words; repeat for more."),
    ] = None,
    template: Annotated[str, typer.Option(help=r"Text in front of the target; \n is a new line.")] = r"{input}\n",
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are left out.")] = 512,
    metric_rows: Annotated[int, typer.Option(help="Validation rows to write answers for.")] = 10,
    dtype: Annotated[
        str | None, typer.Option(help="Number format of the frozen model: float32, bfloat16 or float16.")
    ] = None,
    is_quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="30 steps and at most 60 validation rows, where nothing else is given: a first look."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials and the time they would take; keep nothing.")
    ] = False,
    together: Annotated[
        int, typer.Option(help="Trials of a method that are trained in one batch, each as it is alone.")
    ] = 1,
    search: Annotated[
        int | None,
        typer.Option(
            help="Trials of each candidate in which Optuna chooses the rate, from the smallest to the largest of "
            "--learning-rates, and among --lengths and --starts; the best is run with every seed."
        ),
    ] = None,
    on: Annotated[
        str, typer.Option(help="Where trials are run: here, or ray for a cluster, this machine or RAY_ADDRESS.")
    ] = "here",
    workers: Annotated[int | None, typer.Option(help="Workers of --on ray at most.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier comparison in --output.")] = False,
) -> None:
    """Compare methods and baselines on your data; the same command goes on where it was stopped."""
    budget = QUICK if is_quick else Choices()
    choices = Choices(
        methods=_names("--methods", methods, None),
        baselines=_names("--baselines", None if baselines == "none" else baselines, ()),
        seeds=_integers("--seeds", seeds, budget.seeds),
        rates=read_list("--learning-rates", learning_rates, read_rate, "numbers, or multiples such as 2x"),
        lengths=_integers("--lengths", lengths, ()),
        starts=_names("--starts", starts, ()),
        steps=_given(steps, budget.steps),
        batch_size=batch_size,
        rows=rows,
        validation_rows=_given(validation_rows, budget.validation_rows),
        parameters=parameters,
        shots=shots,
    )
    settings = Settings(
        model=model,
        output=str(output),
        data=data,
        validation=validation,
        split=split,
        validation_split=validation_split,
        subset=subset,
        input_field=input_field,
        target_field=target_field,
        objective=objective,
        label_words=dict(parse_label_word(text) for text in label_word or []),
        template=unescape(template),
        handwritten=_given(handwritten, DEMO_HANDWRITTEN if data is None else None),
        max_length=max_length,
        dtype=dtype,
        metric_rows=metric_rows,
    )
    running = Running(together=together, search=search, on=on, workers=workers)
    # Importing torch takes seconds; what is wrong above has been said by now.
    from softprompt_zoo.training.comparison.compare import compare as run

    quiet()
    run(
        settings,
        choices,
        console(),
        running=running,
        overwrite=overwrite,
        dry_run=dry_run,
        command=shlex.join([PROGRAM, *sys.argv[1:]]),
    )


def _given(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _names(flag: str, text: str | None, otherwise: D) -> tuple[str, ...] | D:
    return otherwise if text is None else read_list(flag, text, str, "names")


def _integers(flag: str, text: str | None, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    return otherwise if text is None else read_list(flag, text, int, "integers")
