"""The HTML report of a comparison: one page that needs no network."""

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.files.writing import write_atomically
from softprompt_zoo.training.comparison import charts
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.charts import Mark
from softprompt_zoo.training.comparison.conclusion import Conclusion, Contrast, is_method
from softprompt_zoo.training.comparison.measure import Measure
from softprompt_zoo.training.comparison.summary import Line
from softprompt_zoo.training.comparison.table import caption, columns

SHOWN_EXAMPLES = 8
"""Number of rows whose answers are shown side by side. Our choice."""
LONG_ANSWER = 24
"""Answers longer than this many characters get a wide cell."""


def write_page(
    path: Path,
    bench: Bench,
    lines: Sequence[Line],
    measure: Measure,
    conclusion: Conclusion,
    command: str,
    left_out: Mapping[str, str],
) -> None:
    """Write the report.

    Args:
        path: The file, written whole or not at all.
        bench: The rows and their objective.
        lines: The lines of the table.
        measure: The measure that they are compared by.
        conclusion: The conclusion.
        command: The command that repeats the comparison.
        left_out: The reason why each candidate left out was not run.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    template = (importlib.resources.files("softprompt_zoo") / "data" / "comparison" / "report.html").read_text("utf-8")
    marks = [_mark(number, line, measure, conclusion) for number, line in enumerate(lines, 1)]
    cells = columns(bench.objective.metrics)
    content = {
        "title": f"Methods compared on {_data_name(bench)}",
        "subtitle": f"{_model_name(bench)}, {bench.training.count} training rows, {len(bench.rows)} validation rows, "
        f"{sum(len(line.seeds) for line in lines)} trials",
        "sentences": conclusion.sentences,
        "caption": _sentence(caption(lines)),
        "heads": list(cells),
        "rows": [
            {
                "number": mark.number,
                "kind": mark.kind,
                "name": mark.name,
                "cells": [cell(line) for cell in cells.values()],
            }
            for mark, line in zip(marks, lines, strict=True)
        ],
        "measure": measure.title,
        "direction": "More is better." if measure.sign > 0 else "Less is better.",
        "charts": {name: Markup(svg) for name, svg in _charts(marks, lines, measure).items()},
        "curves": [(name, Markup(svg)) for name, svg in _curves(lines)],
        "contrasts": [_contrast(one, conclusion, measure) for one in _shown(conclusion)],
        "examples": _examples(bench, lines, measure),
        "cell_width": _cell_width(lines),
        "command": command,
        "facts": _facts(bench, lines),
        "left_out": sorted(left_out.items()),
    }
    page = Environment(autoescape=True, trim_blocks=True).from_string(template).render(**content)
    write_atomically(path, page.encode())


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _mark(number: int, line: Line, measure: Measure, conclusion: Conclusion) -> Mark:
    found = measure.over_seeds(line)
    kind = "best" if line is conclusion.best else "method" if is_method(line) else "baseline"
    parameters = line.mean(lambda result: result.parameters) or 0.0
    return Mark(number, line.name, kind, found.mean, found.half_width, parameters)


def _charts(marks: Sequence[Mark], lines: Sequence[Line], measure: Measure) -> dict[str, str]:
    ordered = sorted(marks, key=lambda mark: -measure.sign * mark.value)
    sized = [mark for mark in marks if mark.x]
    levels = [mark for mark in marks if not mark.x]
    return {
        "intervals": charts.intervals(ordered, f"{measure.title} of every candidate"),
        "scatter": charts.scatter(sized, levels, f"{measure.title} against parameters", "trained parameters"),
    }


def _curves(lines: Sequence[Line]) -> list[tuple[str, str]]:
    histories = [(line.name, line.results[0].history) for line in lines if line.is_trained]
    found = [(name, _points(history, "loss"), _points(history, "eval_loss")) for name, history in histories]
    ends = [loss for _, training, validation in found for _, loss in (*training, *validation)]
    if not ends:
        return []
    high = sorted(ends)[int(0.95 * (len(ends) - 1))] * 1.1
    return [
        (name, charts.curves(training, validation, high, f"training of {name}")) for name, training, validation in found
    ]


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def _shown(conclusion: Conclusion) -> list[Contrast]:
    """Return the contrasts of the best method with the best trained and the best untrained baseline."""
    baselines = [one for one in conclusion.contrasts if not is_method(one.other)]
    closest = sorted(baselines, key=lambda one: one.difference.value)
    trained = [one for one in closest if one.other.is_trained]
    return trained[:1] + [one for one in closest if not one.other.is_trained][:1]


def _contrast(contrast: Contrast, conclusion: Conclusion, measure: Measure) -> dict[str, Any]:
    assert conclusion.best is not None, "there is a contrast"
    sides = [_means(result.row_losses for result in line.results) for line in (conclusion.best, contrast.other)]
    values = [their - our for our, their in zip(*sides, strict=True)]
    better = sum(value > 0 for value in values)
    names = f"{conclusion.best.name} and {contrast.other.name}"
    verdict = "significant" if contrast.is_significant else "not significant"
    return {
        "title": names,
        "note": f"Loss of each row, {contrast.other.name} minus {conclusion.best.name}, mean over seeds: {better} of "
        f"{len(values)} rows are better with {conclusion.best.name}. The difference in {measure.title} is {verdict}.",
        "svg": _markup(charts.differences(values, f"difference between {names}, row by row")),
    }


def _markup(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)


def _means(by_seed: Any) -> list[float]:
    return [sum(values) / len(values) for values in zip(*by_seed, strict=True)]


def _examples(bench: Bench, lines: Sequence[Line], measure: Measure) -> list[dict[str, Any]]:
    """Return the rows whose answers differ most."""
    count = min(len(line.results[0].answers) for line in lines)
    answers = [[line.results[0].answers[place] for line in lines] for place in range(count)]
    order = sorted(range(count), key=lambda place: -len({*answers[place]}) - _balance(answers[place]))
    return [
        {
            "input": bench.objective.shown(bench.examples[place])[0],
            "right": measure.answers[place],
            "answers": [
                {"name": line.name, "text": text, "kind": _kind(text, measure, place)}
                for line, text in zip(lines, answers[place], strict=True)
            ],
        }
        for place in order[:SHOWN_EXAMPLES]
    ]


def _balance(texts: Sequence[str]) -> float:
    """Return how evenly answers are split, from 0 to 1."""
    return 1 - max(texts.count(text) for text in texts) / len(texts)


def _kind(text: str, measure: Measure, place: int) -> str:
    if measure.sign < 0:
        return ""
    return "right" if text == measure.answers[place] else "wrong"


def _cell_width(lines: Sequence[Line]) -> int:
    longest = max((len(text) for line in lines for text in line.results[0].answers), default=0)
    return 150 if longest <= LONG_ANSWER else 300


def _facts(bench: Bench, lines: Sequence[Line]) -> list[tuple[str, Any]]:
    shared, trained = bench.shared, [line.trial for line in lines if line.is_trained]
    budget = f"{trained[0].steps} steps of {trained[0].batch_size} rows" if trained else "nothing is trained"
    versions = ", ".join(f"{name} {version}" for name, version in shared["versions"].items())
    seeds = sorted({seed for line in lines for seed in line.seeds})
    return [
        ("model", shared["model"]),
        ("number format", shared["dtype"]),
        ("objective", shared["objective"]),
        ("template", shared["template"]),
        ("budget per candidate", budget),
        ("seeds", ", ".join(map(str, seeds))),
        ("data", "; ".join(f"{name}: {source['path']}" for name, source in bench.sources.items())),
        ("measured on", bench.objective.measured_on(len(bench.rows), bench.answered)),
        ("versions", versions),
    ]


def _data_name(bench: Bench) -> str:
    path = Path(bench.sources["train"]["path"])
    return path.parent.name if path.stem in ("train", "training") and path.parent.name else path.stem


def _model_name(bench: Bench) -> str:
    return Path(bench.settings.model).name
