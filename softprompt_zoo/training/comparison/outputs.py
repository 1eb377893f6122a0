"""The files of a comparison other than its trials: CSV and JSON."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.files.writing import write_atomically, write_json
from softprompt_zoo.training.comparison.summary import Line
from softprompt_zoo.training.comparison.trial import TrialResult

NUMBERS = (
    "loss",
    "parameters",
    "prompt_tokens",
    "file_bytes",
    "step_seconds",
    "peak_memory",
    "first_token_seconds",
    "forgetting",
    "seconds",
    "together",
)
"""Fields of a result that are single numbers."""


def write_table(path: Path, lines: Sequence[Line]) -> None:
    """Write the table as CSV: a row for each line, with unrounded numbers.

    Args:
        path: The file, written whole or not at all.
        lines: The lines.
    """
    rows = [_row(line) for line in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, content.getvalue().encode())


def write_results(path: Path, shared: Mapping[str, Any], lines: Sequence[Line], more: Mapping[str, Any]) -> None:
    """Write all results as JSON.

    Args:
        path: The file, written whole or not at all.
        shared: What all trials depend on.
        lines: The lines of the table.
        more: Further entries: what was left out, the conclusion.
    """
    written = [{**_row(line), "results": [dataclasses.asdict(result) for result in line.results]} for line in lines]
    write_json(path, {"shared": shared, "lines": written, **more})


def _row(line: Line) -> dict[str, Any]:
    trial = line.trial
    metrics = {name: line.metric(name) for name in line.results[0].metrics}
    intervals = {**metrics, "loss": line.loss}
    half_widths = {f"{name}_half_width": found.half_width for name, found in intervals.items()}
    return {
        "name": line.name,
        "candidate": trial.candidate,
        "options": " ".join(f"{name}={value}" for name, value in trial.options.items()),
        "learning_rate": trial.learning_rate,
        "steps": trial.steps,
        "batch_size": trial.batch_size,
        "seeds": " ".join(map(str, line.seeds)),
        **{name: found.mean for name, found in metrics.items()},
        **half_widths,
        **{name: line.mean(_number(name)) for name in NUMBERS},
    }


def _number(name: str) -> Any:
    def number(result: TrialResult) -> float | None:
        value: float | None = vars(result)[name]
        return value

    return number
