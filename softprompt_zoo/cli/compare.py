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
    model: Annotated[str, typer.Argument(help="Folder, name on the Hub, or smollm2.")] = "smollm2",
    data: Annotated[
        str | None,
        typer.Option(help="File, saved data set or name on the Hub, as in train; the demo data if not given."),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="The same; a tenth of --data, at most 100 rows, if not given.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data to train on, if it has several.")] = None,
    validation_split: Annotated[
        str | None, typer.Option(help="Split of the data to evaluate on, if it has several.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a data set on the Hub that has several.")] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read --data during training instead of loading it into memory.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results and the report.")] = Path("comparison"),
    methods: Annotated[
        str | None, typer.Option(help="Names or aliases, separated by commas; all that fit the model if not given.")
    ] = None,
    baselines: Annotated[str, typer.Option(help="Baselines, separated by commas; none for no baselines.")] = ",".join(
        BASELINES
    ),
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas; 0,1,2 if not given.")] = None,
    learning_rates: Annotated[
        str,
        typer.Option(help="Peak learning rates, separated by commas: 0.03, or 2x for twice each candidate's own."),
    ] = "1x",
    lengths: Annotated[
        str | None,
        typer.Option(help="Numbers of virtual tokens, separated by commas; each method's default if not given."),
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(
            help="Initial values, as for the option init, separated by commas; each method's default if not given."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps per training; 200 if not given.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 8,
    rows: Annotated[int | None, typer.Option(help="Maximum number of training rows.")] = None,
    validation_rows: Annotated[int | None, typer.Option(help="Maximum number of validation rows.")] = None,
    parameters: Annotated[
        int | None,
        typer.Option(help="Approximate number of parameters that each candidate trains; sizes are chosen to match."),
    ] = None,
    shots: Annotated[int, typer.Option(help="Maximum number of examples in a few-shot prompt.")] = SHOTS,
    handwritten: Annotated[
        str | None, typer.Option(help="Hand-written prompt to compare with; the demo brings its own.")
    ] = None,
    input_field: Annotated[str | None, typer.Option(help="Name of the input field.")] = None,
    target_field: Annotated[str | None, typer.Option(help="Name of the target field.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(help=f"What to learn: {', '.join(OBJECTIVES)}; chosen by the data and the model if not given."),
    ] = None,
    label_word: Annotated[
        list[str] | None,
        typer.Option(
            help="Word that stands for a label, as label=word, with --objective label-words; may be repeated."
        ),
    ] = None,
    template: Annotated[str, typer.Option(help=r"Text in front of the target; \n is a new line.")] = r"{input}\n",
    max_length: Annotated[int, typer.Option(help="Maximum length of a row in tokens; longer rows are left out.")] = 512,
    metric_rows: Annotated[int, typer.Option(help="Number of validation rows to generate answers for.")] = 10,
    dtype: Annotated[
        str | None, typer.Option(help="Number format of the frozen model: float32, bfloat16 or float16.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A first look: 30 steps and at most 60 validation rows, unless given."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials and estimate the time they would take; write nothing.")
    ] = False,
    together: Annotated[
        int,
        typer.Option(help="Number of trials of a method to train in one batch; each gives the result it gives alone."),
    ] = 1,
    search: Annotated[
        int | None,
        typer.Option(
            help="Number of trials per candidate in which Optuna chooses the rate, from the smallest to the largest of "
            "--learning-rates, and among --lengths and --starts; the best is run with every seed."
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(help="Where to run trials: here, or ray for Ray on this machine or the cluster at RAY_ADDRESS."),
    ] = "here",
    workers: Annotated[int | None, typer.Option(help="Maximum number of workers with --on ray.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML or YAML file with these options; options on the command line override it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier comparison in --output.")] = False,
) -> None:
    """Compare methods and baselines on your data; run the same command again to resume."""
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
