"""The end of a comparison: its table, its conclusion in words, its files."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.conclusion import conclude
from softprompt_zoo.training.comparison.measure import measure_of
from softprompt_zoo.training.comparison.outputs import write_results, write_table
from softprompt_zoo.training.comparison.page import write_page
from softprompt_zoo.training.comparison.plan import Plan
from softprompt_zoo.training.comparison.result import Comparison
from softprompt_zoo.training.comparison.summary import Line
from softprompt_zoo.training.comparison.table import make_table
from softprompt_zoo.training.report import printer, short_path

TABLE_FILE, RESULTS_FILE, PAGE_FILE = "table.csv", "results.json", "report.html"


def finish(folder: Path, bench: Bench, plan: Plan, lines: Sequence[Line], command: str, console: Console) -> Comparison:
    """Write and print the result of a comparison, and return it.

    Args:
        folder: The folder of the comparison.
        bench: The rows and their objective.
        plan: The trials that were run, and the candidates that were not.
        lines: The lines of the table.
        command: The command that repeats the comparison.
        console: Where to print.
    """
    measure = measure_of(bench, lines)
    conclusion = conclude(lines, measure)
    more = {"left_out": plan.refused, "conclusion": list(conclusion.sentences), "command": command}
    write_table(folder / TABLE_FILE, lines)
    write_results(folder / RESULTS_FILE, bench.shared, lines, more)
    write_page(folder / PAGE_FILE, bench, lines, measure, conclusion, command, plan.refused)
    console.print(make_table(lines, bench.objective.metrics, console.width))
    tell = printer(console)
    tell("")
    for sentence in conclusion.sentences:
        console.print(sentence, markup=False, highlight=False)
    tell(f"\nreport: {short_path(folder / PAGE_FILE)}")
    return Comparison(lines, conclusion, bench.objective.metrics)
