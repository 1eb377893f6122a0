"""The result of a comparison: its lines and its conclusion, for people and notebooks."""

import dataclasses
import html
from collections.abc import Sequence

from rich.console import Console

from softprompt_zoo.operations.html_tables import html_table
from softprompt_zoo.training.comparison.conclusion import Conclusion
from softprompt_zoo.training.comparison.summary import Line
from softprompt_zoo.training.comparison.table import caption, columns, make_table
from softprompt_zoo.training.objectives.objective import Metric

WIDTH = 120
"""Width of the table in a REPL, in characters. Our choice."""


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """The result of a comparison."""

    lines: Sequence[Line]
    """The lines of its table, with the results of every seed."""
    conclusion: Conclusion
    """The conclusion."""
    metrics: Sequence[Metric]
    """The metrics of its objective."""

    def __repr__(self) -> str:
        console = Console(width=WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(make_table(self.lines, self.metrics, WIDTH))
        return "\n".join([capture.get().rstrip(), *self.conclusion.sentences])

    def _repr_html_(self) -> str:
        cells = columns(self.metrics)
        rows = [[line.name, *(cell(line) for cell in cells.values())] for line in self.lines]
        sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.conclusion.sentences)
        return f"{html_table('', ['', *cells], rows)}<p>{html.escape(caption(self.lines))}</p>{sentences}"
