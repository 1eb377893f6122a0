"""Comparisons on a tiny model, and a check that two have the same results."""

import io
import json
import math
from types import MappingProxyType

import pytest
from helpers.tiny_runs import save_tiny, write_rows
from rich.console import Console

from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.compare import compare
from softprompt_zoo.training.comparison.running.choice import ONE_BY_ONE
from softprompt_zoo.training.settings import Settings

TIMES = {"seconds", "step_seconds", "peak_memory", "first_token_seconds", "together"}
"""Fields of a result that differ every time."""
SMALL = {"methods": ("prompt_tuning",), "baselines": (), "seeds": (0,), "steps": 4, "batch_size": 2}


def make_place(folder):
    """Write a tiny model and data into a folder."""
    save_tiny(folder / "model")
    write_rows(folder / "train.jsonl", 12)
    write_rows(folder / "validation.jsonl", 3, seed=1)
    return folder


def settings_in(place, name, data="train.jsonl", validation="validation.jsonl", **more):
    return Settings(
        model=str(place / "model"),
        output=str(place / name),
        data=str(place / data),
        validation=str(place / validation),
        dtype="float32",
        metric_rows=1,
        **more,
    )


def compare_in(place, name, running=ONE_BY_ONE, data=MappingProxyType({}), **changes):
    """Run a comparison, with data settings if given; return what it printed, and its results by file."""
    console = Console(file=io.StringIO(), width=200)
    compare(settings_in(place, name, **data), Choices(**{**SMALL, **changes}), console, running=running)
    return console.file.getvalue(), results_in(place / name)


def results_in(folder):
    files = (folder / "trials").glob("*.json")
    return {path.name: json.loads(path.read_text())["result"] for path in files}


def assert_same_results(results, expected, within=1e-4):
    """Compare results by trial, except for times and memory."""
    assert results.keys() == expected.keys()
    for name, result in results.items():
        other = expected[name]
        assert_same_history(result["history"], other["history"], within)
        for field in {*result} - TIMES - {"history"}:
            has_numbers = field in ("loss", "metrics", "row_losses", "forgetting")
            assert result[field] == (pytest.approx(other[field], abs=within) if has_numbers else other[field]), field


def assert_same_history(history, expected, within):
    for key in ("loss", "eval_loss", "learning_rate"):
        own, alone = ([(entry["step"], entry[key]) for entry in log if key in entry] for log in (history, expected))
        assert [step for step, _ in own] == [step for step, _ in alone]
        for (_, value), (_, other) in zip(own, alone, strict=True):
            assert math.isclose(value, other, abs_tol=within)
