"""The test of learning rates: its curve and its suggestion; it leaves everything as it was."""

import math

import pytest
import torch
from helpers.commands import invoke, refusal
from helpers.tiny_runs import tiny_settings
from rich.console import Console

from softprompt_zoo.training import rates
from softprompt_zoo.training.prepared import prepare
from softprompt_zoo.training.rate_test import describe
from softprompt_zoo.training.rates import HIGHEST, LOWEST, STEPS, RateCurve, find_rate

RATES = [LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)) for step in range(STEPS)]


def curve(loss, noise=0.0):
    """Return a curve of a known shape, with noise whose sign changes from step to step."""
    return RateCurve(RATES, [loss(rate) + noise * (-1) ** step for step, rate in enumerate(RATES)])


def bowl(rate):
    """Return a loss that falls fastest, over the logarithm of the rate, at 1e-2, and is lowest at 0.2."""
    place = math.log10(rate)
    return -1 / (1 + math.exp(-4 * (place + 2))) + max(0.0, place + 0.7) ** 2


def test_the_suggestion_is_where_the_loss_falls_fastest():
    found = curve(bowl)
    assert 0.7e-2 <= found.suggestion <= 1.4e-2
    assert 0.1 < found.rates[found.lowest] < 0.4
    said = describe(found)
    assert f"suggested: --learning-rate {found.suggestion:g}, where the smoothed loss falls fastest" in said[0]


def test_noise_is_said_and_not_taken_for_a_fall():
    assert curve(bowl, noise=0.05).noise == pytest.approx(0.05, rel=0.2)
    noisy = curve(lambda rate: bowl(rate) / 10, noise=0.1)
    assert noisy.suggestion is None
    assert "no rate lowered the loss by more than 3 times the noise (noise is 0.1" in describe(noisy)[0]
    assert "no rate lowered" in describe(curve(lambda rate: rate))[0]
    assert "the loss diverged in the first step" in describe(RateCurve([], []))[0]


@pytest.fixture
def run(place, tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "STEPS", 13)
    options = {"num_virtual_tokens": 3}
    return prepare(tiny_settings(place, tmp_path / "run", options=options), Console(quiet=True))


def test_a_test_leaves_the_model_as_it_was(run, tmp_path):
    model = run.attach()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    found = find_rate(model, run.method, run.settings, run.rows, run.evaluator)
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert [*tmp_path.iterdir()] == []
    assert found.rates == pytest.approx(RATES[::4][: len(found.rates)])
    assert abs(found.losses[0]) < 1e-2 < -found.smoothed[found.lowest]


def test_a_hopeless_loss_ends_the_test(run, monkeypatch):
    monkeypatch.setattr(rates, "HIGHEST", 1e12)
    monkeypatch.setattr(rates, "HOPELESS", 1.2)
    found = find_rate(run.attach(), run.method, run.settings, run.rows, run.evaluator)
    assert 0 < len(found.rates) < 13
    assert all(math.isfinite(loss) for loss in found.losses)


def test_train_find_rate_prints_a_curve_and_draws_it(place, tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "STEPS", 13)
    words = ("train", place / "model", "prompt", "--data", place / "train.jsonl", "--output", tmp_path / "run")
    more = ("--find-rate", "--dtype", "float32", "--batch-size", 4)
    result = invoke(*words, *more, "--png", tmp_path / "rates.png")
    assert result.exit_code == 0, result.output
    for part in ("trying rates from 1e-05 to 10", "1.0e-05", "the run is set to train at", "noise is"):
        assert part in result.stdout
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run").exists()
    assert "whose folder does not exist" in refusal(*words, *more, "--png", tmp_path / "no" / "rates.png")
    assert "--find-rate was given with --resume" in refusal("train", "--resume", "--find-rate")
