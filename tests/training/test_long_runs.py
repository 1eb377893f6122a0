"""What long runs need: early stopping, gradient accumulation, gradient checkpointing, reports."""

import json

import pytest
import torch
from helpers.tiny_runs import assert_equal_weights, resume, tiny_settings, train, weights

import softprompt_zoo as zoo

FIELDS = {"steps": 4, "evaluate_every": 4, "save_every": 4, "options": {"num_virtual_tokens": 3}}


def record(folder):
    return json.loads((folder / "training.json").read_text())


@pytest.fixture(scope="module")
def plain(place, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain") / "run"
    train(tiny_settings(place, output, **FIELDS))
    return output


@pytest.fixture(scope="module")
def early(place, tmp_path_factory):
    """Return a run whose learning rate is so high that the second evaluation is worse than the first."""
    output = tmp_path_factory.mktemp("early") / "run"
    changes = {"learning_rate": 30.0, "early_stopping": 2, "evaluate_every": 1, "save_every": None, "steps": 20}
    return output, train(tiny_settings(place, output, **{**FIELDS, **changes}))


def test_early_stopping_keeps_the_best_prompt(early, place):
    output, printed = early
    found = record(output)
    losses = {entry["step"]: entry["eval_loss"] for entry in found["history"] if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert max(losses) == best + 2 < 20
    assert found["best_step"] == best
    assert found["results"]["trained prompt"]["loss"] == pytest.approx(losses[best], rel=1e-5)
    assert_equal_weights(weights(output), weights(output / f"checkpoint-{best}"))
    assert f"stopped early, after step {best + 2}; the prompt is that of step {best}, with the lowest" in printed


def test_a_run_that_stopped_early_is_not_trained_on(early, tmp_path, place):
    """The record looks as if the run had been killed while the trained prompt was measured."""
    output, _ = early
    before = record(output)
    unfinished = {**before, "status": "running"}
    unfinished["results"] = {name: score for name, score in before["results"].items() if name != "trained prompt"}
    (output / "training.json").write_text(json.dumps(unfinished))
    resume(output)
    after = record(output)
    assert after["results"]["trained prompt"] == before["results"]["trained prompt"]
    assert len([entry for entry in after["history"] if "loss" in entry]) == before["best_step"] + 2


@pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_what_saves_memory_changes_nothing_but_rounding(plain, place, tmp_path, changes):
    output = tmp_path / "run"
    train(tiny_settings(place, output, **{**FIELDS, **changes}))
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(output)[name], tensor, rtol=1e-4, atol=1e-6)


def test_losses_are_reported_where_the_user_looks(place, tmp_path):
    pytest.importorskip("tensorboard")
    output = tmp_path / "run"
    train(tiny_settings(place, output, **FIELDS, report_to="tensorboard"))
    [events] = output.glob("runs/*/events.out.tfevents*")
    assert b"train/loss" in events.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6, "gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4, but the 6 rows"),
        ({"schedule": "lineal"}, "schedule is 'lineal'; expected one of 'linear', 'cosine'"),
        ({"schedule": "cosine_with_min_lr"}, "which needs more than a run's steps"),
        ({"report_to": "paper"}, "report_to is 'paper'; paper is not supported, only"),
        ({"report_to": "wandb"}, "report_to is 'wandb': WandbCallback requires wandb"),
        ({"early_stopping": 2, "save_every": 4, "evaluate_every": 2}, "early_stopping returns to the best"),
        ({"early_stopping": 0}, "early_stopping is 0; expected an integer of at least 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; expected a number of at least 0"),
    ],
)
def test_what_a_long_run_cannot_have(place, tmp_path, changes, message):
    with pytest.raises((ValueError, zoo.UnsupportedError), match=message):
        train(tiny_settings(place, tmp_path / "run", **{**FIELDS, **changes}))
    assert not (tmp_path / "run").exists()
