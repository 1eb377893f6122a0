"""`compare`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from softprompt_zoo.cli.command import console, quiet
from softprompt_zoo.cli.configured import told, unescape
from softprompt_zoo.cli.panels import CANDIDATES, DATA, OBJECTIVE, RUN, TRAINING
from softprompt_zoo.training.comparison.choices import BASELINES, SHOTS
from softprompt_zoo.training.comparison.config import ComparisonConfig, try_field
from softprompt_zoo.training.settings import OBJECTIVES

PROGRAM = "softprompt-zoo"


def compare(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder, name on the Hub, or smollm2.")] = "smollm2",
    data: Annotated[
        str | None,
        typer.Option(
            help="File, saved data set or name on the Hub, as in train; the demo data if not given.",
            rich_help_panel=DATA,
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="The same; a tenth of --data, at most 100 rows, if not given.", rich_help_panel=DATA),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of --data to train on, if it has several.", rich_help_panel=DATA)
    ] = None,
    validation_split: Annotated[
        str | None, typer.Option(help="Split of the data to evaluate on, if it has several.", rich_help_panel=DATA)
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Configuration of a data set on the Hub that has several.", rich_help_panel=DATA)
    ] = None,
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming", help="Read --data during training instead of loading it into memory.", rich_help_panel=DATA
        ),
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names or aliases, separated by commas; all that fit the model if not given.",
            rich_help_panel=CANDIDATES,
        ),
    ] = None,
    baselines: Annotated[
        str, typer.Option(help="Baselines, separated by commas; none for no baselines.", rich_help_panel=CANDIDATES)
    ] = ",".join(BASELINES),
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas; 0,1,2 if not given.", rich_help_panel=CANDIDATES)
    ] = None,
    learning_rates: Annotated[
        str,
        typer.Option(
            help="Peak learning rates, separated by commas: 0.03, or 2x for twice each candidate's own.",
            rich_help_panel=CANDIDATES,
        ),
    ] = "1x",
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Numbers of virtual tokens, separated by commas; each method's default if not given.",
            rich_help_panel=CANDIDATES,
        ),
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(
            help="Initial values, as for the option init, separated by commas; each method's default if not given.",
            rich_help_panel=CANDIDATES,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps per training; 200 if not given.", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per step.", rich_help_panel=TRAINING)] = 8,
    rows: Annotated[int | None, typer.Option(help="Maximum number of training rows.", rich_help_panel=TRAINING)] = None,
    validation_rows: Annotated[
        int | None, typer.Option(help="Maximum number of validation rows.", rich_help_panel=TRAINING)
    ] = None,
    parameters: Annotated[
        int | None,
        typer.Option(
            help="Approximate number of parameters that each candidate trains; sizes are chosen to match.",
            rich_help_panel=CANDIDATES,
        ),
    ] = None,
    shots: Annotated[
        int, typer.Option(help="Maximum number of examples in a few-shot prompt.", rich_help_panel=CANDIDATES)
    ] = SHOTS,
    handwritten: Annotated[
        str | None,
        typer.Option(help="Hand-written prompt to compare with; the demo brings its own.", rich_help_panel=OBJECTIVE),
    ] = None,
    input_field: Annotated[str | None, typer.Option(help="Name of the input field.", rich_help_panel=DATA)] = None,
    target_field: Annotated[str | None, typer.Option(help="Name of the target field.", rich_help_panel=DATA)] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help=f"What to learn: {', '.join(OBJECTIVES)}; chosen by the data and the model if not given.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    label_word: Annotated[
        list[str] | None,
        typer.Option(
            help="Word that stands for a label, as label=word, with --objective label-words; may be repeated.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    template: Annotated[
        str, typer.Option(help=r"Text in front of the target; \n is a new line.", rich_help_panel=DATA)
    ] = r"{input}\n",
    max_length: Annotated[
        int, typer.Option(help="Maximum length of a row in tokens; longer rows are left out.", rich_help_panel=DATA)
    ] = 512,
    metric_rows: Annotated[
        int, typer.Option(help="Number of validation rows to generate answers for.", rich_help_panel=OBJECTIVE)
    ] = 10,
    dtype: Annotated[
        str | None,
        typer.Option(help="Number format of the frozen model: float32, bfloat16 or float16.", rich_help_panel=TRAINING),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A first look: 30 steps and at most 60 validation rows, unless given.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List the trials and estimate the time they would take; write nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    together: Annotated[
        int,
        typer.Option(
            help="Number of trials of a method to train in one batch; each gives the result it gives alone.",
            rich_help_panel=RUN,
        ),
    ] = 1,
    search: Annotated[
        int | None,
        typer.Option(
            help="Number of trials per candidate in which Optuna chooses the rate, from the smallest to the largest of "
            "--learning-rates, and among --lengths and --starts; the best is run with every seed.",
            rich_help_panel=RUN,
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            help="Where to run trials: here, or ray for Ray on this machine or the cluster at RAY_ADDRESS.",
            rich_help_panel=RUN,
        ),
    ] = "here",
    workers: Annotated[
        int | None, typer.Option(help="Maximum number of workers with --on ray.", rich_help_panel=RUN)
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results and the report.", rich_help_panel=RUN)] = Path(
        "comparison"
    ),
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML or YAML file with these options; options on the command line override it.", rich_help_panel=RUN
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove an earlier comparison in --output.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Compare methods and baselines on your data; run the same command again to resume."""
    values = told(context, config, ComparisonConfig, try_field)
    asked = ComparisonConfig(**{**values, "template": unescape(values["template"])})
    choices, settings, running = asked.choices(), asked.settings(), asked.running()
    # Importing torch takes seconds; all errors above are raised before that.
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
