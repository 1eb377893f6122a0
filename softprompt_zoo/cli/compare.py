"""`compare`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from softprompt_zoo.cli.command import console, quiet
from softprompt_zoo.cli.configured import told, unescape
from softprompt_zoo.training.comparison.choices import BASELINES, SHOTS
from softprompt_zoo.training.comparison.config import ComparisonConfig, try_field
from softprompt_zoo.training.settings import OBJECTIVES

PROGRAM = "softprompt-zoo"


def compare(
    context: typer.Context,
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
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read --data while training, rather than into memory.")
    ] = False,
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
    quick: Annotated[
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
    config: Annotated[
        Path | None, typer.Option(help="TOML or YAML file with these names; what is given beside it wins.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier comparison in --output.")] = False,
) -> None:
    """Compare methods and baselines on your data; the same command goes on where it was stopped."""
    values = told(context, config, ComparisonConfig, try_field)
    asked = ComparisonConfig(**{**values, "template": unescape(values["template"])})
    choices, settings, running = asked.choices(), asked.settings(), asked.running()
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
