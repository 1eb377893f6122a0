"""The table on the terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from softprompt_zoo.training.amounts import shown_bytes
from softprompt_zoo.training.comparison.statistics import Interval
from softprompt_zoo.training.comparison.summary import Line
from softprompt_zoo.training.objectives.objective import Metric

CAPTION = "mean ± half the width of the 95% t interval over seeds; just the number for one seed; - if not applicable"
SHARED = "*"
"""Marks a number that belongs to several trials together."""
PADDING = 4
"""Characters that a cell takes in addition to its text; also those of the table's edges."""
Cell = Callable[[Line], str]


def columns(metrics: Sequence[Metric]) -> Mapping[str, Cell]:
    """Return the columns of the table: by title, the function that turns a line into a cell.

    Args:
        metrics: Metrics of the objective.
    """
    return {
        **{metric.title: _metric_cell(metric) for metric in metrics},
        "loss": lambda line: shown_interval(line.loss),
        "parameters": lambda line: shown(line.mean(lambda result: result.parameters), "{:,.0f}"),
        "file": lambda line: _size(line.mean(lambda result: result.file_bytes)),
        "step": lambda line: _mark(line, shown(line.mean(lambda result: result.step_seconds), "{:.2f} s")),
        "memory": lambda line: _mark(line, _size(line.mean(lambda result: result.peak_memory))),
        "first token": lambda line: shown_milliseconds(line.mean(lambda result: result.first_token_seconds)),
        "forgetting": lambda line: shown(line.mean(lambda result: result.forgetting), "{:+.3f}"),
    }


def make_table(lines: Sequence[Line], metrics: Sequence[Metric], width: int) -> Table:
    """Make the table of the results so far.

    Args:
        lines: Its lines.
        metrics: Metrics of the objective.
        width: Width of the terminal; columns that do not fit are only in the files.
    """
    cells = {title: [cell(line) for line in lines] for title, cell in columns(metrics).items()}
    longest = max((len(line.name) for line in lines), default=0)
    shown = _that_fit(cells, width - PADDING - longest)
    left_out = [title for title in cells if title not in shown]
    table = Table(caption=_with_left_out(caption(lines), left_out), caption_justify="left")
    table.add_column("", no_wrap=True)
    for title in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for number, line in enumerate(lines):
        style = None if line.is_trained else "dim"
        table.add_row(line.name, *(cells[title][number] for title in shown), style=style)
    return table


def caption(lines: Sequence[Line]) -> str:
    """Return the caption, which explains the table's numbers.

    Args:
        lines: Its lines.
    """
    together = max((line.together for line in lines), default=1)
    if together == 1:
        return CAPTION
    return f"{CAPTION}; {SHARED} for a batch shared by up to {together} trials: all of them together, not each"


def _with_left_out(text: str, left_out: Sequence[str]) -> str:
    return f"{text}; not shown for lack of space: {', '.join(left_out)}" if left_out else text


def _mark(line: Line, cell: str) -> str:
    return f"{cell}{SHARED}" if line.together > 1 else cell


def _that_fit(cells: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """Return the titles of the columns that fit within a width, at least one."""
    found: list[str] = []
    for title, column in cells.items():
        width -= max(map(len, [title, *column])) + PADDING
        if found and width < 0:
            break
        found.append(title)
    return found


def shown_interval(found: Interval) -> str:
    """Format a mean and its interval; just the mean for one seed."""
    return f"{found.mean:.3f}" if found.half_width is None else f"{found.mean:.3f} ± {found.half_width:.3f}"


def shown(value: float | None, form: str) -> str:
    """Format a number; a dash if it does not apply."""
    return "-" if value is None else form.format(value)


def _size(value: float | None) -> str:
    return "-" if value is None else shown_bytes(value)


def shown_milliseconds(value: float | None) -> str:
    """Format a short time."""
    return "-" if value is None else f"{1000 * value:.0f} ms"


def _metric_cell(metric: Any) -> Cell:
    return lambda line: shown_interval(line.metric(metric.name))
