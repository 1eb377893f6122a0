"""Classification with a task head: every candidate also trains the head, and restores the original afterwards."""

import pytest
import torch
from helpers.commands import refusal
from helpers.tiny_labels import write_labeled
from helpers.tiny_runs import save_tiny, tiny_settings

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.all import find_candidate
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.measure import measure_of
from softprompt_zoo.training.comparison.plan import make_plan
from softprompt_zoo.training.comparison.running.run_trial import run_trial
from softprompt_zoo.training.comparison.summary import summarize


def test_an_encoders_head_is_trained_along_by_all(tmp_path):
    save_tiny(tmp_path / "model", "bert")
    data = write_labeled(tmp_path / "train.jsonl", 24)
    validation = write_labeled(tmp_path / "validation.jsonl", 9, seed=1)
    settings = tiny_settings(
        tmp_path, tmp_path / "out", data=str(data), validation=str(validation), options={}, handwritten=None
    )
    choices = Choices(methods=("p_tuning_v2", "cpt"), seeds=(0,), steps=2, batch_size=4)
    bench = Bench(settings, choices, lambda line: None)
    bench.load()
    head = {name: tensor.clone() for name, tensor in bench.model.classifier.state_dict().items()}
    count = sum(tensor.numel() for tensor in head.values())
    plan = make_plan(bench, lambda trial: False)
    assert {trial.candidate for trial in plan.trials} == {
        *("untrained", "lora", "adapter-tuning", "full-fine-tuning", "p_tuning_v2")
    }
    assert "reads no answers" in plan.refused["few-shot (shots=8)"]
    results = {trial.key: run_trial(trial, bench) for trial in plan.trials}
    for trial in plan.trials:
        result = results[trial.key]
        assert result.forgetting is None
        assert result.first_token_seconds is None
        with find_candidate(trial.candidate).put_on(bench, trial) as fitted:
            trained = {id(parameter) for parameter in fitted.model.parameters() if parameter.requires_grad}
            own = {id(parameter) for parameter in fitted.model.classifier.parameters()}
        assert result.parameters == 0 or result.parameters > count
        assert trial.candidate in ("untrained", "p_tuning_v2") or own <= trained, trial.candidate
    after = bench.model.classifier.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in head.items())
    lines = summarize(plan.trials, results)
    measure = measure_of(bench, lines)
    assert measure.title == "accuracy"
    assert [measure.over_seeds(line).mean for line in lines] == [line.metric("accuracy").mean for line in lines]


def test_a_label_that_validation_lacks_is_refused_before_the_model_is_loaded(place, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "load", lambda *_: pytest.fail("the model was loaded"))
    data = write_labeled(tmp_path / "train.jsonl", 24)
    validation = write_labeled(tmp_path / "validation.jsonl", 2, seed=1)
    words = ("--data", data, "--validation", validation, "--output", tmp_path / "out", "--objective", "label-words")
    assert "no validation row has the label 'w12'" in refusal("compare", place / "model", *words)
    assert not (tmp_path / "out").exists()
