"""A run in two processes, as `accelerate launch` starts them, gives what one process gives on the same rows."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.tiny_runs import tiny_settings, train, weights

from softprompt_zoo.training import arguments

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
PLAIN = ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "softprompt_zoo")


def launch(*words):
    """Run a command in two processes on the CPU."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *LAUNCH, *PLAIN, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def losses(record, name):
    return [entry[name] for entry in record["history"] if name in entry]


@pytest.mark.slow
def test_two_processes_are_one_to_the_user(place, tmp_path):
    options = {"num_virtual_tokens": 3}
    changes = {"options": options, "steps": 4, "evaluate_every": 2, "save_every": 2, "handwritten": None}
    train(tiny_settings(place, tmp_path / "one", **changes))
    config = tmp_path / "one" / "config.yaml"
    result = launch("train", "--config", config, "--output", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    for line in ("loading ", "measuring the base model", "step 2 of 4", "loss curve:"):
        assert result.stdout.count(line) == 1
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-4, atol=1e-6)
    one, two = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two"))
    for name in ("loss", "eval_loss"):
        assert losses(two, name) == pytest.approx(losses(one, name), rel=1e-5)
    # Both processes leave a state; a run that was killed continues from them.
    states = (tmp_path / "two" / "checkpoint-4").glob("rng_state_*.pth")
    assert sorted(path.name for path in states) == ["rng_state_0.pth", "rng_state_1.pth"]
    (tmp_path / "two" / "training.json").write_text(json.dumps({**two, "status": "running"}))
    (tmp_path / "two" / "checkpoint-4" / "optimizer.pt").unlink()
    result = launch("train", "--resume", "--output", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("resuming after step 2") == 1
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-4, atol=1e-6)


def test_rows_that_processes_cannot_share_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments.processes, "count", lambda: 3)
    with pytest.raises(ValueError, match=r"batch_size is 4, the rows of a step.* among 3 processes with 1 parts each"):
        train(tiny_settings(place, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
