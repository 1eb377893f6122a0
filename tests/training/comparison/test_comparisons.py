"""The `compare` command: what it writes, how it continues, and what it refuses."""

import csv
import errno
import json
import shutil

import pytest
from helpers.commands import refusal

from softprompt_zoo.training.comparison import compare as comparing
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.running import one_by_one


def trial_files(output):
    return {path.name: path.read_bytes() for path in (output / "trials").iterdir()}


def test_table_and_files_say_the_same(compared):
    output, printed = compared
    rows = list(csv.DictReader((output / "table.csv").read_text("utf-8").splitlines()))
    record = json.loads((output / "results.json").read_text())
    assert [row["name"] for row in rows] == [line["name"] for line in record["lines"]]
    assert {"untrained", "handwritten", "few-shot", "lora", "prompt_tuning", "cpt"} <= {row["name"] for row in rows}
    for row, line in zip(rows, record["lines"], strict=True):
        losses = [result["loss"] for result in line["results"]]
        assert float(row["loss"]) == pytest.approx(sum(losses) / len(losses))
        assert len(losses) == (1 if row["name"] in ("untrained", "handwritten") else 2)
    assert " ".join(record["conclusion"]) in " ".join(printed.split())
    assert sum(len(line["results"]) for line in record["lines"]) == len(trial_files(output)) == 14


def test_the_same_command_runs_nothing_again_and_more_seeds_only_themselves(compared, compare, tmp_path, monkeypatch):
    output = tmp_path / "comparison"
    shutil.copytree(compared[0], output)
    before = trial_files(output)
    ran = []
    run = one_by_one.run_trial
    monkeypatch.setattr(one_by_one, "run_trial", lambda trial, *rest: ran.append(trial) or run(trial, *rest))
    words = ("--methods", "prompt-tuning,cpt", "--handwritten", "w1 w2")
    assert compare(output, *words).exit_code == 0
    assert ran == []
    result = compare(output, "--methods", "prompt-tuning", "--baselines", "untrained", "--seeds", "0,5")
    assert result.exit_code == 0, result.output
    assert [(trial.candidate, trial.seed) for trial in ran] == [("prompt_tuning", 5)]
    assert before.items() <= trial_files(output).items()


def test_a_damaged_result_is_run_again(compared, compare, tmp_path):
    output = tmp_path / "comparison"
    words = ("--methods", "prompt-tuning", "--baselines", "none", "--seeds", "0")
    assert compare(output, *words).exit_code == 0
    [path] = (output / "trials").iterdir()
    whole = json.loads(path.read_text())["result"]["loss"]
    path.write_bytes(path.read_bytes()[:100])
    assert compare(output, *words).exit_code == 0
    assert json.loads(path.read_text())["result"]["loss"] == whole


def test_a_dry_run_lists_trials_and_time_and_keeps_nothing(compare, tmp_path):
    result = compare(tmp_path / "comparison", "--methods", "prompt-tuning", "--baselines", "lora", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "4 trials, 4 to run; about " in result.output
    assert not (tmp_path / "comparison").exists()


def test_what_does_not_fit_is_named_and_the_others_go_on(compare, tmp_path):
    words = ("--methods", "prompt-tuning,p-tuning", "--baselines", "untrained", "--lengths", "3,4000000")
    result = compare(tmp_path / "comparison", *words, "--seeds", "0")
    assert result.exit_code == 0, result.output
    left_out = json.loads((tmp_path / "comparison" / "results.json").read_text())["left_out"]
    assert all("4000000" in name for name in left_out)
    assert "prompt_tuning (num_virtual_tokens=4000000)" in left_out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "prefx"), "did you mean 'prefix_tuning'"),
        (("--methods", "prefix,"), "--methods is 'prefix,', with ''; expected names, separated by commas"),
        (("--baselines", "lorra"), "did you mean 'lora'? expected some of untrained"),
        (("--seeds", "0,x"), "--seeds is '0,x', with 'x'; expected integers, separated by commas"),
        (("--seeds", "1,1"), "seeds has 1 twice; give each once"),
        (("--seeds", "-1"), "seeds has -1; expected integers from 0 to 4294967295"),
        (("--learning-rates", "1e-3,fast"), "with 'fast'; expected numbers, or multiples such as 2x"),
        (("--learning-rates", "0"), "learning_rates has 0.0; expected numbers above 0"),
        (("--lengths", "0"), "lengths is 0; expected an integer of at least 1"),
        (
            ("--lengths", "3", "--parameters", "10"),
            "parameters is 10 and lengths is (3,); parameters determines the",
        ),
        (("--validation-rows", "0"), "validation_rows is 0; expected an integer of at least 1"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(place, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(Bench, "load", lambda *_: pytest.fail("the model was loaded"))
    data = ("--data", place / "train.jsonl", "--output", tmp_path / "comparison")
    assert message in refusal("compare", place / "model", *data, *words)
    assert not (tmp_path / "comparison").exists()


def test_a_folder_of_something_else_stays_as_it_is(place, compared, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "load", lambda *_: pytest.fail("the model was loaded"))
    output, _ = compared
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    words = ("compare", place / "model", "--data", place / "train.jsonl", "--validation", place / "validation.jsonl")
    words += ("--dtype", "float32", "--shots", 2)
    assert "holds another comparison, whose answered rows was 2 and is now" in refusal(*words, "--output", output)
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds files that are not a comparison's" in refusal(*words, "--output", tmp_path)
    assert "is a file" in refusal(*words, "--output", tmp_path / "notes.txt")


def test_a_full_disk_is_said_before_and_on_the_way(compare, tmp_path, monkeypatch):
    words = ("--methods", "prompt-tuning", "--baselines", "none", "--seeds", "0")
    monkeypatch.setattr(comparing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3}))
    assert "has 3 bytes left" in compare(tmp_path / "comparison", *words).stderr
    assert not (tmp_path / "comparison").exists()
    monkeypatch.undo()

    def save(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "trial.json")

    monkeypatch.setattr(comparing.Store, "save", save)
    result = compare(tmp_path / "comparison", *words)
    assert result.exit_code == 2
    assert "the disk is full" in result.stderr
    monkeypatch.undo()
    assert compare(tmp_path / "comparison", *words).exit_code == 0
