"""Findings, and how to print them."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt_zoo.errors import printable


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of a report."""

    about: str
    """The subject, in a word or two."""
    text: str
    """What was found, and what to do if it is a problem."""
    is_problem: bool = False
    """Whether something should be done."""


def print_findings(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """Print findings under a title; problems are marked with a colored sign.

    Args:
        console: Where to print.
        title: The title.
        findings: The findings, in order.
    """
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        mark = Text("!", "red") if finding.is_problem else Text("")
        table.add_row(mark, Text(printable(finding.about), "bold"), Text(printable(finding.text)))
    console.print(table)
    console.print()
