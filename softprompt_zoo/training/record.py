"""A run's record, `training.json`: written atomically, and checked before a run resumes from it."""

import dataclasses
import platform
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from softprompt_zoo.backbone import identity
from softprompt_zoo.config import typed
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import CheckpointError, OutputError
from softprompt_zoo.files.reading import read_json
from softprompt_zoo.files.writing import write_json
from softprompt_zoo.registry.discovery import own_version
from softprompt_zoo.training.evaluation import Score
from softprompt_zoo.training.settings import Settings

RECORD_FILE = "training.json"
MADE_BY = "softprompt-zoo train"
RUNNING, FINISHED = "running", "finished"
PARTS = ("settings", "data", "results", "seconds")
"""The parts of every record, each an object."""
JSON_CONTAINERS: dict[Any, type] = {list: list, tuple: list, dict: dict, Mapping: dict}
"""The type that JSON gives a container."""


def is_run(folder: Path) -> bool:
    """Return whether a folder belongs to a training run."""
    try:
        return bool(read_json(folder / RECORD_FILE).get("made_by") == MADE_BY)
    except CheckpointError:
        return False


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a run.

    Args:
        folder: The folder of the run.

    Returns:
        The record; everything a run needs is present and has the right type.

    Raises:
        OutputError: If there is no record, or it is damaged.
    """
    if not is_run(folder):
        raise OutputError(f"{folder} holds no training run to resume; give the --output of one, or leave out --resume")
    record = _of_this_version(read_json(folder / RECORD_FILE))
    problem = _problem(record)
    if problem is not None:
        raise OutputError(
            f"{folder / RECORD_FILE} is damaged: {problem}; restore it, or train again with --overwrite or in a new "
            "folder"
        )
    return record


def new_record(settings: Settings, recipe: Recipe | None, sources: Mapping[str, Any]) -> dict[str, Any]:
    """Start a record.

    Args:
        settings: The run, with every number set.
        recipe: The recipe of its method, if there is one.
        sources: Its data: path, SHA-256 and rows of each file.
    """
    packages = ("torch", "transformers", "accelerate")
    versions = {"softprompt-zoo": own_version(), **{name: metadata.version(name) for name in packages}}
    return {
        "status": RUNNING,
        "command": settings.command(),
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "settings": dataclasses.asdict(settings),
        "recipe": dataclasses.asdict(recipe) if recipe is not None else None,
        "data": dict(sources),
        "results": {},
        "seconds": {},
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD_FILE, {**record, "made_by": MADE_BY})


def _of_this_version(record: dict[str, Any]) -> dict[str, Any]:
    """Convert records of earlier versions, whose scores had only `rouge_l`; everything else is the same."""
    results = record.get("results")
    if not isinstance(results, dict):
        return record
    return {**record, "results": {name: _with_metrics(score) for name, score in results.items()}}


def _with_metrics(score: Any) -> Any:
    if not isinstance(score, dict) or "rouge_l" not in score or "metrics" in score:
        return score
    rest = {name: value for name, value in score.items() if name != "rouge_l"}
    return {**rest, "metrics": {"rouge_l": score["rouge_l"]}}


def _problem(record: Mapping[str, Any]) -> str | None:
    return (
        _problem_of_form(record)
        or _problem_of_settings(record["settings"])
        or _problem_of_seconds(record["seconds"])
        or _problem_of_data(record["data"])
        or _problem_of_results(record["results"])
    )


def _problem_of_form(record: Mapping[str, Any]) -> str | None:
    if record.get("status") not in (RUNNING, FINISHED):
        return f"its status is {_short(record.get('status'))}; expected {RUNNING!r} or {FINISHED!r}"
    for name in PARTS:
        if not isinstance(record.get(name), dict):
            return f"it has no {name}"
    is_described = "model" not in record or identity.is_description(record["model"])
    return None if is_described else "it does not describe a model"


def _problem_of_settings(settings: Mapping[str, Any]) -> str | None:
    problem = _wrong_fields(Settings, settings)
    return None if problem is None else f"its settings have {problem}"


def _problem_of_seconds(seconds: Mapping[str, Any]) -> str | None:
    return None if {*map(type, seconds.values())} <= {int, float} else "its seconds are not numbers"


def _problem_of_data(data: Mapping[str, Any]) -> str | None:
    for name, source in data.items():
        if not isinstance(source, dict) or not all(isinstance(source.get(key), str) for key in ("path", "sha256")):
            return f"its data has no path and checksum of {name!r}"
    return None


def _problem_of_results(results: Mapping[str, Any]) -> str | None:
    for name, score in results.items():
        problem = _wrong_fields(Score, score) if isinstance(score, dict) else "no fields"
        if problem is not None:
            return f"its result {name!r} has {problem}"
    return None


def _wrong_fields(kind: Any, values: Mapping[str, Any]) -> str | None:
    """Return what prevents a dataclass from being built from JSON values."""
    hints, needed = typed.fields_of(kind)
    for name, value in values.items():
        if name not in hints:
            return f"an unknown {name!r}"
        if not _is_a(value, hints[name]):
            return f"{name} = {_short(value)}"
    missing = sorted(needed - {*values})
    return f"no {missing[0]!r}" if missing else None


def _is_a(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has a type; values inside lists and objects may have any type."""
    container = JSON_CONTAINERS.get(typing.get_origin(hint))
    if container is not None:
        return isinstance(value, container)
    kinds = typing.get_args(hint) or (hint,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
