"""Print results to the terminal."""

import functools
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from softprompt_zoo.files import peft_folder
from softprompt_zoo.training.evaluation import TRAINED, Evaluator, Score
from softprompt_zoo.training.folder import PICTURE_FILE
from softprompt_zoo.training.objectives.objective import Objective

if TYPE_CHECKING:
    from softprompt_zoo.training.base import Base


WITH_PEFT = ("or in Python, with PEFT alone:", "from peft import PeftModel", "PeftModel.from_pretrained")
WITH_ZOO = ("or in Python:", "import softprompt_zoo as zoo", "zoo.load")
"""How to load a prompt in Python: the headline, the import, and the function to call."""
STYLES = {"input": "dim", TRAINED: "bold"}
"""Styles of the lines of a sample."""


def printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints lines without markup, since paths may contain brackets."""
    return functools.partial(console.print, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_scores(console: Console, scores: Sequence[Score], evaluator: Evaluator) -> None:
    """Print the table of results.

    Args:
        console: Where to print.
        scores: The rows.
        evaluator: The evaluator that measured them.
    """
    objective = evaluator.objective
    table = Table(caption=objective.measured_on(len(evaluator.rows), evaluator.metric_rows), caption_justify="left")
    table.add_column("")
    for column in ("prompt tokens", "loss", *(metric.title for metric in objective.metrics)):
        table.add_column(column, justify="right")
    for score in scores:
        numbers = [score.loss, *(score.metrics[metric.name] for metric in objective.metrics)]
        style = "bold" if score.name == TRAINED else None
        table.add_row(score.name, str(score.prompt_tokens), *(f"{number:.3f}" for number in numbers), style=style)
    console.print(table)


def print_samples(console: Console, scores: Sequence[Score], evaluator: Evaluator, count: int = 3) -> None:
    """Print some answers of everything that was measured, next to the references.

    Args:
        console: Where to print.
        scores: The rows of the table.
        evaluator: The evaluator that measured them.
        count: Rows to show.
    """
    width = max(len(score.name) for score in scores)
    for index, example in enumerate(evaluator.examples[: min(count, evaluator.metric_rows)]):
        lines = [*zip(("input", "reference"), evaluator.objective.shown(example), strict=True)]
        lines += [(score.name, score.answers[index]) for score in scores]
        console.print()
        for name, text in lines:
            line = f"{name:>{width}}  {escape(' '.join(text.split()))}"
            console.print(line, style=STYLES.get(name, ""), emoji=False, highlight=False, soft_wrap=True)


def print_next_steps(
    console: Console, folder: Path, base: "Base", objective: Objective[Any, Any], example: Any
) -> None:
    """Print where the files are, and how to use the prompt.

    Args:
        console: Where to print.
        folder: The folder of the run.
        base: The model.
        objective: The objective it was trained on.
        example: An example whose input is used in the command.
    """
    place = short_path(folder)
    has_peft = (folder / peft_folder.CONFIG_FILE).is_file()
    advice, imported, loader = WITH_PEFT if has_peft else WITH_ZOO
    kind = objective.model_class
    text, _ = objective.shown(example)
    words = ["softprompt-zoo", "generate", base.name, place, text]
    if text.startswith("-"):  # it would be parsed as an option
        words.insert(2, "--")
    if "tasks" in objective.facts:
        words[2:2] = ["--task", example.task]
    lines = [
        f"prompt and record: {place}",
        f"loss curve: {short_path(folder / PICTURE_FILE)}",
        "",
        "use it:",
        "  " + shlex.join(words),
        "",
        advice,
        f"  {imported}",
        f"  from transformers import {kind}",
        f"  base = {kind}.from_pretrained({', '.join([repr(base.folder), *objective.model_arguments])})",
        f"  model = {loader}(base, {place!r})",
    ]
    printer(console)("\n".join(lines))


def short_path(path: Path) -> str:
    """Return a path relative to the working directory if it lies inside it, as the user would write it."""
    relative = os.path.relpath(path)
    if relative.startswith("-"):  # it would be parsed as an option
        return os.path.join(os.curdir, relative)
    return relative if not relative.startswith("..") else str(path)
