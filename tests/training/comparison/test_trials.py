"""The result of a trial, and the files it leaves."""

import copy
import dataclasses

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, set_seed

from softprompt_zoo.method import training_arguments
from softprompt_zoo.training.comparison.candidates.all import BASELINE_CLASSES, find_candidate
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.plan import make_plan
from softprompt_zoo.training.comparison.running.run_trial import run_trial
from softprompt_zoo.training.comparison.trial import Trial
from softprompt_zoo.training.evaluation import target_loss

NAMES = ["untrained", "few-shot", "lora", "adapter-tuning", "full-fine-tuning", "prompt_tuning", "cpt"]


@pytest.fixture(scope="module")
def trials(bench):
    plan = make_plan(bench, lambda trial: False)
    return {trial.candidate: trial for trial in plan.trials if trial.seed == 0}


@pytest.fixture(scope="module")
def ran(bench, trials):
    """Return each trial's result, and the model as the trial left it."""
    return {name: (run_trial(trials[name], bench), copy.deepcopy(bench.model)) for name in NAMES}


@pytest.fixture(scope="module")
def results(ran):
    return {name: result for name, (result, _) in ran.items()}


def outputs(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 15)[None]).logits


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_bitwise_as_it_was(ran, place, name):
    fresh = AutoModelForCausalLM.from_pretrained(place / "model")
    _, model = ran[name]
    assert type(model) is type(fresh)
    assert vars(model).keys() <= vars(fresh).keys()
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert {hook.__module__.split(".")[0] for hook in hooks} <= {"transformers"}  # hooks that record hidden states stay
    assert torch.equal(outputs(model), outputs(fresh.eval()))


@pytest.mark.parametrize("name", ["lora", "prompt_tuning"])
def test_equal_trials_give_equal_numbers(bench, trials, results, name):
    again = run_trial(trials[name], bench)
    assert again.row_losses == results[name].row_losses
    assert again.answers == results[name].answers
    other = run_trial(dataclasses.replace(trials[name], seed=1), bench)
    assert other.row_losses != again.row_losses


def test_the_loss_is_that_of_the_rows(bench, results):
    result = results["untrained"]
    alone = [target_loss(bench.model, [row], bench.objective.collate) for row in bench.rows]
    assert result.row_losses == pytest.approx(alone, abs=1e-4)
    assert result.loss == pytest.approx(target_loss(bench.model, bench.rows, bench.objective.collate))


def test_lora_is_what_peft_and_trainer_make(bench, place, trials, results, tmp_path):
    trial = trials["lora"]
    set_seed(trial.seed)
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model = peft.get_peft_model(model, config)
    arguments = training_arguments(
        find_candidate("lora").recipe,
        str(tmp_path),
        learning_rate=trial.learning_rate,
        max_steps=trial.steps,
        per_device_train_batch_size=trial.batch_size,
        seed=trial.seed,
        remove_unused_columns=False,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    Trainer(model, arguments, train_dataset=bench.training.rows, data_collator=bench.objective.collate).train()
    assert results["lora"].loss == pytest.approx(target_loss(model, bench.rows, bench.objective.collate), abs=1e-6)


def test_adapters_begin_as_nothing_and_count_as_the_paper_says(bench, trials):
    trial = trials["adapter-tuning"]
    before = outputs(bench.model)
    with find_candidate("adapter-tuning").put_on(bench, trial) as fitted:
        assert torch.equal(outputs(fitted.model), before)
        width, layers = bench.model.config.hidden_size, bench.model.config.num_hidden_layers
        bottleneck = trial.options["bottleneck"]
        assert fitted.parameters == layers * (2 * width * bottleneck + width + bottleneck)
        for parameter in fitted.model.bottleneck_adapters.parameters():
            torch.nn.init.constant_(parameter, 0.1)
        assert not torch.equal(outputs(fitted.model), before)


def test_what_is_measured_has_a_meaning_or_is_left_out(results):
    untrained, trained = results["untrained"], results["prompt_tuning"]
    assert untrained.forgetting == 0
    assert (untrained.parameters, untrained.file_bytes, untrained.step_seconds, untrained.peak_memory) == (
        0,
        0,
        None,
        None,
    )
    assert trained.forgetting != 0
    assert trained.parameters == 20 * 32
    assert trained.file_bytes > 4 * trained.parameters
    assert {entry["step"] for entry in trained.history if "eval_loss" in entry} == {1, 2}


def test_candidates_are_sized_to_train_equally_much(bench, monkeypatch):
    choices = Choices(steps=2, batch_size=4, shots=2, parameters=1900)
    monkeypatch.setattr(bench, "choices", choices)
    plan = make_plan(bench, lambda trial: False)
    for trial in plan.trials:
        with find_candidate(trial.candidate).put_on(bench, trial) as fitted:
            assert not trial.steps or abs(fitted.parameters - 1900) <= 950, trial.label
    assert {"lora", "prompt_tuning", "prefix_tuning"} <= {trial.candidate for trial in plan.trials}
    assert "trains all 21,984 parameters" in plan.refused["full-fine-tuning"]


def test_rates_lengths_and_starts_are_lines_of_their_own(bench, monkeypatch):
    from softprompt_zoo.training.comparison.choices import Rate

    choices = Choices(
        methods=("prompt_tuning", "cpt"),
        baselines=("lora",),
        seeds=(0,),
        rates=(Rate(0.01), Rate(2.0, is_multiple=True)),
        lengths=(3, 4),
        starts=("sampled", "text"),
        shots=2,
    )
    monkeypatch.setattr(bench, "choices", choices)
    plan = make_plan(bench, lambda trial: False)
    found = {(trial.candidate, trial.learning_rate, *trial.options.values()) for trial in plan.trials}
    assert {("lora", 0.01, 8), ("lora", 0.002, 8), ("cpt", 0.01), ("cpt", 0.002)} <= found
    assert ("prompt_tuning", 0.06, 3, "sampled") in found
    assert any("init_text" in reason for name, reason in plan.refused.items() if "text" in name)


def test_every_baseline_is_named_as_it_is_found():
    assert {name: cls.name for name, cls in BASELINE_CLASSES.items()} == {name: name for name in BASELINE_CLASSES}


def test_a_key_depends_on_everything():
    trial = Trial(candidate="lora", options={"rank": 8}, shared={"model": "a"})
    changes = [{"seed": 1}, {"options": {"rank": 4}}, {"shared": {"model": "b"}}, {"steps": 3}, {"learning_rate": 0.1}]
    keys = {trial.key, *(dataclasses.replace(trial, **change).key for change in changes)}
    assert len(keys) == 6
