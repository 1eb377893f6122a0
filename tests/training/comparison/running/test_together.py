"""Comparisons whose trials share their batches give the files that they give one by one."""

import io
import json
import math

import pytest
from helpers.tiny_runs import save_tiny, write_rows
from rich.console import Console

import softprompt_zoo as zoo
from softprompt_zoo.training.comparison.choices import Choices, Rate
from softprompt_zoo.training.comparison.compare import compare
from softprompt_zoo.training.comparison.running import together as running
from softprompt_zoo.training.comparison.running.choice import Running
from softprompt_zoo.training.comparison.running.together import groups
from softprompt_zoo.training.comparison.trial import Trial
from softprompt_zoo.training.settings import Settings

TIMES = {"seconds", "step_seconds", "peak_memory", "first_token_seconds"}
"""Fields of a result that are other ones every time."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    write_rows(folder / "train.jsonl", 12)
    write_rows(folder / "validation.jsonl", 3, seed=1)
    return folder


def run(place, name, way, **changes):
    """Run a comparison; return what it printed, and its results by trial."""
    settings = Settings(
        model=str(place / "model"),
        output=str(place / name),
        data=str(place / "train.jsonl"),
        validation=str(place / "validation.jsonl"),
        dtype="float32",
        metric_rows=1,
    )
    chosen = {"methods": ("prompt_tuning",), "baselines": (), "seeds": (0,), "steps": 4, "batch_size": 2, **changes}
    console = Console(file=io.StringIO(), width=200)
    compare(settings, Choices(**chosen), console, running=way)
    files = (place / name / "trials").glob("*.json")
    return console.file.getvalue(), {path.name: json.loads(path.read_text())["result"] for path in files}


def assert_same(results, expected):
    assert results.keys() == expected.keys()
    for name, result in results.items():
        other = expected[name]
        assert_same_history(result["history"], other["history"])
        for field in {*result} - TIMES - {"history"}:
            has_numbers = field in ("loss", "metrics", "row_losses", "forgetting")
            assert result[field] == (pytest.approx(other[field], abs=1e-4) if has_numbers else other[field]), field


def assert_same_history(history, expected):
    for key in ("loss", "eval_loss", "learning_rate"):
        own, alone = ([(entry["step"], entry[key]) for entry in log if key in entry] for log in (history, expected))
        assert [step for step, _ in own] == [step for step, _ in alone]
        for (_, value), (_, other) in zip(own, alone, strict=True):
            assert math.isclose(value, other, abs_tol=1e-4)


def test_rates_and_lengths_give_the_results_of_one_by_one(place):
    changes = {"rates": (Rate(0.3), Rate(0.003)), "lengths": (2, 4)}
    printed, together = run(place, "together", Running(together=3), **changes)
    assert "one by one" not in printed
    _, alone = run(place, "alone", Running(), **changes)
    assert len(alone) == 4
    assert_same(together, alone)


def test_what_cannot_share_a_batch_is_run_one_by_one_which_is_said_once(place, monkeypatch):
    def refuse(*arguments):
        raise zoo.UnsupportedError("a training step draws random numbers")

    monkeypatch.setattr(running, "train_group", refuse)
    rates = tuple(map(Rate, (0.1, 0.2, 0.3, 0.4)))
    printed, results = run(place, "refused", Running(together=2), rates=rates, steps=1)
    assert printed.count("prompt_tuning is trained one by one: a training step draws random numbers") == 1
    assert len(results) == 4


def trial(candidate, rate, **more):
    return Trial(candidate=candidate, learning_rate=rate, steps=4, **more)


def test_groups_have_one_method_and_one_budget():
    trials = [trial("prompt_tuning", 0.1), trial("lora", 0.1), trial("prompt_tuning", 0.2), trial("lora", 0.2)]
    trials += [trial("prompt_tuning", 0.3), trial("prompt_tuning", 0.1, batch_size=2)]
    found = [[trials.index(one) for one in group] for group in groups(trials, 2)]
    assert found == [[0, 2], [4], [1], [3], [5]]
