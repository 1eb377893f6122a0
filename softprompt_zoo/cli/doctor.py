"""`doctor`: what fits a model, and what looks wrong in a run."""

from pathlib import Path
from typing import Annotated

import typer

from softprompt_zoo.cli.command import console, quiet
from softprompt_zoo.cli.configured import unescape
from softprompt_zoo.config.checks import check_positive_integer
from softprompt_zoo.errors import check_packages


def doctor(
    subject: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="Folder, name on the Hub or smollm2; or the folder of a run.")
    ],
    max_length: Annotated[
        int, typer.Option(help="Maximum length of a row in tokens, for a model's memory estimate.")
    ] = 512,
    template: Annotated[
        str | None, typer.Option(help="Template that the prompt of a run is used with, if not the one from training.")
    ] = None,
) -> None:
    """Check what fits a model and what would be refused; or, for a run, what looks wrong."""
    check_positive_integer("max_length", max_length)
    check_packages("doctor needs", "psutil", remedy='pip install "softprompt-zoo[train]"')
    quiet()
    from softprompt_zoo.training.record import is_run

    if is_run(Path(subject)):
        _look_at_run(Path(subject), None if template is None else unescape(template))
    else:
        _look_at_model(subject, max_length)


def _look_at_model(name: str, length: int) -> None:
    from softprompt_zoo.training.base import Base
    from softprompt_zoo.training.doctor.environment import look_at_environment
    from softprompt_zoo.training.doctor.models import look_at_attention, look_at_memory, look_at_methods
    from softprompt_zoo.training.doctor.tokenizers import look_at_tokenizer
    from softprompt_zoo.training.findings import print_findings

    base, out = Base(name, progress=lambda line: typer.echo(line, err=True)), console()
    print_findings(out, f"memory for rows of {length} tokens", [*look_at_memory(base, length)])
    print_findings(out, "methods, tried on the model's sizes with example options", [*look_at_methods(base)])
    print_findings(out, "attention implementations, tried with a prompt", [*look_at_attention(base)])
    print_findings(out, "tokenizer", [*look_at_tokenizer(base)])
    print_findings(out, "installed", look_at_environment())


def _look_at_run(folder: Path, template: str | None) -> None:
    from softprompt_zoo.training.base import Base
    from softprompt_zoo.training.doctor.runs import look_at_losses, look_at_prompt, look_at_rows
    from softprompt_zoo.training.findings import print_findings
    from softprompt_zoo.training.record import FINISHED, read_record

    record, out = read_record(folder), console()
    base = Base(record["settings"]["model"], progress=lambda line: typer.echo(line, err=True))
    findings = [*look_at_losses(record), *look_at_rows(record, base, template)]
    if record["status"] == FINISHED:
        findings += look_at_prompt(record, base, folder)
    print_findings(out, f"the run in {folder}", findings)
    problems = sum(finding.is_problem for finding in findings)
    out.print(f"{problems} of {len(findings)} lines look wrong, marked !" if problems else "nothing looks wrong")
