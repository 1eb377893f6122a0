"""Searches on a tiny model: what they choose, their results, how they continue, and two processes on one study."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from helpers.tiny_comparisons import SMALL, assert_same_results, compare_in, make_place, results_in, settings_in
from rich.console import Console

import softprompt_zoo as zoo
from softprompt_zoo.training.comparison.choices import Choices, Rate
from softprompt_zoo.training.comparison.compare import compare
from softprompt_zoo.training.comparison.running.choice import Running

CHANGES = {"rates": (Rate(0.01), Rate(0.3)), "lengths": (2, 4), "seeds": (0, 1), "steps": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def searched(place):
    """Return what a search of three trials printed, and its results."""
    printed, results = compare_in(place, "searched", Running(search=3), **CHANGES)
    return printed, results


def trials_in(folder):
    return [json.loads(path.read_text())["trial"] for path in sorted((folder / "trials").glob("*.json"))]


def test_the_best_of_the_trials_is_run_with_every_seed(place, searched):
    _, results = searched
    trials = trials_in(place / "searched")
    tried = [trial for trial in trials if trial["seed"] == 0]
    assert len(tried) == 3
    assert all(0.01 <= trial["learning_rate"] <= 0.3 for trial in tried)
    assert all(trial["options"]["num_virtual_tokens"] in (2, 4) for trial in tried)
    losses = [result["loss"] for name, result in sorted(results.items()) if name.startswith("prompt_tuning-0-")]
    best = tried[losses.index(min(losses))]
    [again] = [trial for trial in trials if trial["seed"] == 1]
    assert again == {**best, "seed": 1}
    [line] = csv.DictReader((place / "searched" / "table.csv").read_text().splitlines())
    assert float(line["learning_rate"]) == best["learning_rate"]


def test_its_trials_have_the_results_of_the_plain_run(place, searched):
    _, results = searched
    for trial in trials_in(place / "searched"):
        options = {"rates": (Rate(trial["learning_rate"]),), "lengths": (trial["options"]["num_virtual_tokens"],)}
        compare_in(place, "plain", **{**CHANGES, **options, "seeds": (trial["seed"],)})
    assert_same_results(results, results_in(place / "plain"), within=0)


def test_more_trials_go_on_from_those_that_are_there(place, searched):
    printed, results = compare_in(place, "searched", Running(search=4), **CHANGES)
    assert "4 of 4: loss" in printed
    assert "3 of 4: loss" not in printed
    assert len([name for name in results if name.startswith("prompt_tuning-0-")]) == 4


def test_another_search_is_refused(place, searched):
    before = results_in(place / "searched")
    with pytest.raises(zoo.OutputError, match="another search of prompt_tuning, whose learning rates were"):
        compare_in(place, "searched", Running(search=3), **{**CHANGES, "rates": (Rate(0.01), Rate(0.5))})
    with pytest.raises(zoo.OutputError, match="whose steps were 2 and are now 3"):
        compare_in(place, "searched", Running(search=3), **{**CHANGES, "steps": 3})
    assert results_in(place / "searched") == before


def test_a_search_of_nothing_is_refused():
    with pytest.raises(ValueError, match="search is 0"):
        Running(search=0)


def check_rounds(place, name, running, size):
    """Search in rounds, and compare with plain runs of the trials that were chosen."""
    printed, results = compare_in(place, name, running, **CHANGES)
    tried = [trial for trial in trials_in(place / name) if trial["seed"] == 0]
    assert len(tried) == 4
    assert [printed.count(f"{count} of 4: loss") for count in range(1, 5)] == [1] * 4
    for trial in trials_in(place / name):
        options = {"rates": (Rate(trial["learning_rate"]),), "lengths": (trial["options"]["num_virtual_tokens"],)}
        compare_in(place, f"plain {name}", **{**CHANGES, **options, "seeds": (trial["seed"],)})
    assert_same_results(results, results_in(place / f"plain {name}"), within=size)
    printed, again = compare_in(place, name, running, **CHANGES)
    assert again == results
    assert "of 4: loss" not in printed
    return results


def test_trials_that_are_chosen_together_share_batches(place):
    results = check_rounds(place, "rounds", Running(search=4, together=2), 1e-4)
    assert {result["together"] for name, result in results.items() if "-0-" in name} == {2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the warnings of Ray and Tune
def test_two_workers_search(place):
    pytest.importorskip("ray")
    check_rounds(place, "ray", Running(search=4, on="ray", workers=2), 0)


def test_trials_that_are_yet_to_be_chosen_are_not_listed(place):
    choices, console = Choices(**SMALL), Console(file=io.StringIO())
    with pytest.raises(ValueError, match="--dry-run lists the trials, and --search chooses them as it goes"):
        compare(settings_in(place, "listed"), choices, console, dry_run=True, running=Running(search=2))
    assert not (place / "listed").exists()


def test_without_optuna_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(zoo.errors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(zoo.MissingPackageError, match=r'--search needs optuna.*pip install "softprompt-zoo\[search\]"'):
        Running(search=2)


@pytest.mark.slow
def test_two_processes_on_one_study_give_what_the_plain_run_gives(place):
    model, data, validation = (str(place / name) for name in ("model", "train.jsonl", "validation.jsonl"))
    words = [sys.executable, "-m", "softprompt_zoo", "compare", model, "--data", data, "--validation", validation]
    words += ["--output", str(place / "two"), "--methods", "prompt_tuning", "--baselines", "none", "--seeds", "0,1"]
    words += ["--learning-rates", "0.01,0.3", "--lengths", "2,4", "--steps", "20", "--batch-size", "2"]
    words += ["--dtype", "float32", "--metric-rows", "1", "--search", "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    printed = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    done = [text.count(" of 6: ") for text in printed]
    assert sum(done) == 6, printed
    assert min(done) > 0, printed
    results = results_in(place / "two")
    for trial in trials_in(place / "two"):
        options = {"rates": (Rate(trial["learning_rate"]),), "lengths": (trial["options"]["num_virtual_tokens"],)}
        compare_in(place, "plain-two", steps=20, seeds=(trial["seed"],), **options)
    assert_same_results(results, results_in(place / "plain-two"), within=0)
