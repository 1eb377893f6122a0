"""A comparison that is killed loses only the trial that was running."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from softprompt_zoo.cli import main
main()
"""


@pytest.mark.slow
def test_sigkill_loses_one_trial_at_most(place, compare, tmp_path):
    output = tmp_path / "comparison"
    words = ["--methods", "prompt-tuning,prefix", "--baselines", "untrained", "--seeds", "0,1,2", "--steps", "20"]
    small = ["--data", place / "train.jsonl", "--validation", place / "validation.jsonl", "--dtype", "float32"]
    command = [sys.executable, "-c", SCRIPT, "compare", place / "model", *small, "--output", output, *words]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    trials = output / "trials"
    deadline = time.monotonic() + 240
    while len(whole(trials)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole(trials)}
    assert 3 <= len(kept) < 7
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{len(kept)} of 7 trials are already done" in result.stdout
    assert kept == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept}
    assert len(whole(trials)) == 7
    assert (output / "report.html").is_file()


def whole(trials):
    return list(trials.glob("*.json"))
