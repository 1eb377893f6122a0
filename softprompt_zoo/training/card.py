"""Add a run to the card of its prompt: the command, the data, and the results."""

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt_zoo.files.card import card_file
from softprompt_zoo.training.evaluation import TRAINED, Evaluator

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

SETTINGS = ("learning_rate", "steps", "batch_size", "max_length", "seed", "dtype", "template")
"""The settings shown on a card."""
DECIMALS = 4
"""Decimals of numbers on a card. Our choice."""


def describe_run(folder: Path, record: Mapping[str, Any], evaluator: Evaluator) -> None:
    """Describe a run on the card of its prompt, unless the user has changed the card.

    Args:
        folder: The folder of the run, with the prompt and its card.
        record: The run's record.
        evaluator: The evaluator that measured it.
    """
    card = card_file.read(folder)
    if card is None or not card_file.is_generated(card):
        return
    titles = {metric.name: metric.title for metric in evaluator.objective.metrics}
    task = card_file.field(card, "pipeline_tag") or "text-generation"
    content = card_file.changed(
        card,
        sections=[_training(record), _results(record["results"], titles, evaluator)],
        eval_results=_measured(record, titles, task),
        model_name=folder.absolute().name,
    )
    card_file.write(folder, content)


def without_folders(command: str) -> str:
    """Return a command with only the names of files and folders: their locations are private to the user."""
    return shlex.join(_last_part(word) for word in shlex.split(command))


def _last_part(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals and os.path.isabs(value):
        return f"{name}={os.path.basename(value)}"
    return os.path.basename(word) if os.path.isabs(word) else word


def _training(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = ["## Training", "", "```sh", without_folders(record["command"]), "```", ""]
    lines += ["| setting | value |", "| --- | --- |"]
    lines += [f"| {name} | `{record['settings'][name]!r}` |" for name in SETTINGS]
    lines += ["", "| data | file | rows | SHA-256 |", "| --- | --- | --- | --- |"]
    for name, source in record["data"].items():
        lines.append(f"| {name} | {Path(source['path']).name} | {source.get('rows', '')} | `{source['sha256']}` |")
    return "\n".join([*lines, "", f"With {versions}.", ""])


def _results(results: Mapping[str, Any], titles: Mapping[str, str], evaluator: Evaluator) -> str:
    on = evaluator.objective.measured_on(len(evaluator.rows), evaluator.metric_rows)
    lines = ["## Results", "", f"Measured by the command above: {on}.", ""]
    lines += [
        f"| | prompt tokens | loss | {' | '.join(titles.values())} |",
        "| --- | --- | --- |" + " --- |" * len(titles),
    ]
    for name, score in results.items():
        numbers = [score["loss"], *(score["metrics"].get(metric, math.nan) for metric in titles)]
        shown = " | ".join(f"{number:.3f}" for number in numbers)
        lines.append(f"| {name} | {score['prompt_tokens']} | {shown} |")
    return "\n".join([*lines, ""])


def _measured(record: Mapping[str, Any], titles: Mapping[str, str], task: str) -> "list[EvalResult]":
    """Return the results of the trained prompt in the hub's format."""
    from huggingface_hub import EvalResult

    score = record["results"][TRAINED]
    source = record["data"].get("validation", record["data"]["train"])
    data = Path(source["path"]).name
    numbers = {"loss": score["loss"], **score["metrics"]}
    return [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=f"{data}, validation rows",
            metric_type=name,
            metric_name=titles.get(name, name),
            metric_value=round(float(number), DECIMALS),
        )
        for name, number in numbers.items()
        if math.isfinite(number)
    ]
