"""`train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from softprompt_zoo.cli.command import check_file, console, quiet
from softprompt_zoo.cli.configured import is_given, told, unescape
from softprompt_zoo.cli.panels import DATA, MEMORY, OBJECTIVE, RUN, TRAINING
from softprompt_zoo.methods import DEFAULT
from softprompt_zoo.training.settings import Settings

ALLOWED_WITH_RESUME = ("resume", "output", "debug")


def train(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder, name on the Hub, or smollm2.")] = "smollm2",
    method: Annotated[str, typer.Argument(help="Name or alias of the method.")] = DEFAULT,
    data: Annotated[
        Path | None,
        typer.Option(
            help="JSONL, CSV or Parquet file, save_to_disk folder, or name on the Hub; the demo data if not given.",
            rich_help_panel=DATA,
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="The same; a tenth of --data, at most 100 rows, if not given.", rich_help_panel=DATA),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of --data to train on, if it has several.", rich_help_panel=DATA)
    ] = None,
    validation_split: Annotated[
        str | None,
        typer.Option(
            help="Split to validate on, of --validation, or of --data if that is not given.", rich_help_panel=DATA
        ),
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
    objective: Annotated[
        str | None,
        typer.Option(
            help="What to learn: writing, label-words, classification, chat or token-classification; chosen by "
            "the data and the model if not given.",
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
    input_field: Annotated[str | None, typer.Option(help="Name of the input field.", rich_help_panel=DATA)] = None,
    target_field: Annotated[str | None, typer.Option(help="Name of the target field.", rich_help_panel=DATA)] = None,
    template: Annotated[
        str, typer.Option(help=r"Text in front of the target; \n is a new line.", rich_help_panel=DATA)
    ] = r"{input}\n",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="Option of the method, as name=value with a JSON value; may be repeated.", rich_help_panel=TRAINING
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; the recipe's if not given.", rich_help_panel=TRAINING)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Optimizer steps; the recipe's if not given, at most 60 for the demo.", rich_help_panel=TRAINING
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows per step; the recipe's if not given.", rich_help_panel=TRAINING)
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Maximum length of a row in tokens; longer rows are left out.", rich_help_panel=DATA)
    ] = 512,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed for the initial values, the order of the rows, and the choice of rows that are set aside.",
            rich_help_panel=TRAINING,
        ),
    ] = 0,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Number format of the frozen model: float32, bfloat16 or float16; if not given, bfloat16 if the "
            "machine supports it, else float32.",
            rich_help_panel=MEMORY,
        ),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Steps between validations; a quarter of --steps if not given.", rich_help_panel=RUN),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints; a quarter of --steps if not given.", rich_help_panel=RUN),
    ] = None,
    metric_rows: Annotated[
        int, typer.Option(help="Number of validation rows to generate answers for.", rich_help_panel=OBJECTIVE)
    ] = 10,
    handwritten: Annotated[
        str | None,
        typer.Option(help="Hand-written prompt to compare with; the demo brings its own.", rich_help_panel=OBJECTIVE),
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Linear warm-up steps; the recipe's if not given.", rich_help_panel=TRAINING)
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Learning-rate schedule, by its name in transformers; the recipe's if not given.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay; the recipe's if not given.", rich_help_panel=TRAINING)
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many validations without a lower loss, and keep the best prompt.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    gradient_accumulation_steps: Annotated[
        int,
        typer.Option(
            help="Split the rows of each step into this many parts to save memory; must divide --batch-size.",
            rich_help_panel=MEMORY,
        ),
    ] = 1,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Recompute layers in the backward pass to save memory.",
            rich_help_panel=MEMORY,
        ),
    ] = False,
    report_to: Annotated[
        str | None,
        typer.Option(
            help="Report losses to tensorboard, or to any other integration of transformers.", rich_help_panel=RUN
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results; softprompt-METHOD if not given.", rich_help_panel=RUN)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML or YAML file with these options; options on the command line override it.", rich_help_panel=RUN
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --output.", rich_help_panel=RUN)] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what the run would need and what the model would see; write nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    find_rate: Annotated[
        bool,
        typer.Option(
            "--find-rate",
            help="Try learning rates with one step each and suggest one, without training.",
            rich_help_panel=RUN,
        ),
    ] = False,
    png: Annotated[
        Path | None, typer.Option(help="Picture to write of the rates that --find-rate tries.", rich_help_panel=RUN)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove an earlier run in --output.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Train a prompt on texts, labels, tagged words or chats; without arguments, run the demo."""
    if resume:
        _check_alone(context)
        from softprompt_zoo.training.run import resume as resume_run

        quiet()
        resume_run(output or Path(default_output(method)), console())
        return
    values = told(context, config, Settings, _try_setting)
    values["output"] = values["output"] or default_output(values["method"])
    settings = Settings(**{**values, "template": unescape(values["template"])})
    check_file("--png", png)
    # Importing torch takes seconds; all errors above are raised before that.
    quiet()
    if config is not None:
        _check_options(settings, config)
    if find_rate:
        from softprompt_zoo.training.rate_test import try_rates

        try_rates(settings, console(), png)
    elif dry_run:
        from softprompt_zoo.training.dry_run import dry_run as look_ahead

        look_ahead(settings, console(), overwrite=overwrite)
    else:
        from softprompt_zoo.training.run import train as train_run

        train_run(settings, console(), overwrite=overwrite)


def _check_options(settings: Settings, config: Path) -> None:
    """Raise an error with the line of the configuration file for an option that the method does not accept."""
    from softprompt_zoo.config.config_file import option_place
    from softprompt_zoo.method import get_method

    method = get_method(settings.method)
    try:
        method.configure(**settings.options)
    except (TypeError, ValueError) as error:
        place = option_place(config, str(error))
        if place is None:
            raise
        raise ValueError(f"{place}: {error}") from error


def default_output(method: str) -> str:
    """Return the default output folder of a run."""
    return f"softprompt-{method}"


def _try_setting(**setting: Any) -> None:
    Settings(**{"output": "", **setting})


def _check_alone(context: typer.Context) -> None:
    """Reject other options with `--resume`, which would change the resumed run."""
    for name in context.params:
        if is_given(context, name) and name not in ALLOWED_WITH_RESUME:
            flag = _flag(name)
            raise ValueError(
                f"{flag} was given with --resume, which continues with the settings in training.json; leave {flag} out"
            )


def _flag(name: str) -> str:
    """Return the flag or argument name of a parameter."""
    return name.upper() if name in ("model", "method") else "--" + name.replace("_", "-")
