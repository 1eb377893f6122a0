"""Comparisons on rows of several tasks, and on rows that are read during training."""

import json

import pytest
from helpers.commands import refusal
from helpers.tiny_comparisons import assert_same_results, compare_in, make_place, results_in, settings_in
from helpers.tiny_runs import WORDS

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.all import find_candidate
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.plan import make_plan
from softprompt_zoo.training.comparison.running.choice import Running
from softprompt_zoo.training.comparison.running.run_trial import run_trial
from softprompt_zoo.training.evaluation import target_loss
from softprompt_zoo.training.objectives.writing import Writing

METHODS = ("prompt_tuning", "multitask_prompt_tuning", "cpt")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def bench(place):
    """Return a bench with rows of two tasks, twice as many of the first."""
    texts = [" ".join(WORDS[number : number + 4]) for number in range(6)]
    rows = [{"input": text, "target": text.split()[0], "task": "first"} for text in texts]
    rows += [{"input": text, "target": text.split()[-1], "task": "last"} for text in texts[:3]]
    for name in ("train", "validation"):
        (place / f"tasks-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = settings_in(place, "tasks", data="tasks-train.jsonl", validation="tasks-validation.jsonl")
    choices = Choices(methods=METHODS, baselines=("untrained", "few-shot", "lora"), seeds=(0,), steps=2, shots=2)
    made = Bench(settings, choices, lambda line: None)
    made.load()
    return made


def test_prompts_with_tasks_are_told_them_and_all_are_measured_task_by_task(bench):
    plan = make_plan(bench, lambda trial: False)
    assert [trial.candidate for trial in plan.trials] == ["untrained", "lora", *METHODS[:2]]
    for name in ("few-shot (shots=2)", "cpt"):
        assert "the rows belong to 2 tasks, and it shows the same examples in front of every row" in plan.refused[name]
    results = {trial.candidate: run_trial(trial, bench) for trial in plan.trials}
    plain = Writing(bench.base, "{input}\n")
    alone = [
        plain.measure(bench.model, own, plain.rows(own), 9)
        for own in ([row for row in bench.examples if row.task == task] for task in ("first", "last"))
    ]
    untrained = results["untrained"]
    assert untrained.metrics["rouge_l"] == pytest.approx(sum(one.metrics["rouge_l"] for one in alone) / 2)
    assert untrained.loss == pytest.approx(target_loss(bench.model, plain.rows(bench.examples), plain.collate))
    assert results["multitask_prompt_tuning"].parameters > results["prompt_tuning"].parameters
    assert all(len(result.row_losses) == 9 for result in results.values())


def test_a_prompt_of_each_task_reads_its_own_rows(bench):
    plan = make_plan(bench, lambda trial: False)
    [trial] = [one for one in plan.trials if one.candidate == "multitask_prompt_tuning"]
    with find_candidate(trial.candidate).put_on(bench, trial) as fitted:
        batch = bench.objective_for(fitted).collate(bench.rows)
        assert batch["task_ids"].tolist() == [0] * 6 + [1] * 3
    assert "task_ids" not in bench.objective.collate(bench.rows)


def test_trials_with_tasks_share_batches(place, bench):
    changes = {"methods": ("multitask_prompt_tuning",), "seeds": (0, 1), "steps": 2}
    data = {"data": "tasks-train.jsonl", "validation": "tasks-validation.jsonl"}
    printed, together = compare_in(place, "tasks together", Running(together=2), data=data, **changes)
    assert "one by one" not in printed
    _, alone = compare_in(place, "tasks alone", data=data, **changes)
    assert_same_results(together, alone)


def test_rows_that_are_streamed_are_those_in_memory(place):
    changes = {"baselines": ("untrained", "few-shot"), "shots": 2, "seeds": (0, 1), "steps": 2}
    _, held = compare_in(place, "held", **changes)
    printed, streamed = compare_in(place, "streamed", Running(together=2), data={"streaming": True}, **changes)
    assert "prompt_tuning is trained one by one: its rows are read while training" in printed
    by_name = [{name[: name.rindex("-")]: result for name, result in one.items()} for one in (held, streamed)]
    assert by_name[0].keys() == by_name[1].keys()
    for name in ("untrained-0", "few-shot-1"):
        assert by_name[1][name]["row_losses"] == by_name[0][name]["row_losses"]
    assert by_name[1]["prompt_tuning-0"]["loss"] != by_name[1]["prompt_tuning-1"]["loss"]
    compare_in(place, "streamed", data={"streaming": True}, **changes)  # continues, with nothing left to do
    assert results_in(place / "streamed") == streamed


def test_a_part_of_a_stream_is_refused_before_the_model_is_loaded(place, monkeypatch):
    monkeypatch.setattr(Bench, "load", lambda *_: pytest.fail("the model was loaded"))
    words = ("--data", place / "train.jsonl", "--output", place / "none", "--streaming", "--rows", 3)
    assert "--rows is 3, but --streaming reads all rows while training" in refusal("compare", place / "model", *words)
