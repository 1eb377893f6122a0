"""Runs that are killed at any moment."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tiny_runs import assert_equal_weights, tiny_settings, weights
from transformers import AutoModelForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.training import folder as folders

SCRIPT = """
import os, sys, torch
torch.set_num_threads(1)
from rich.console import Console
from softprompt_zoo.training.run import resume, train
from softprompt_zoo.training.settings import Settings
import json
settings = Settings(**json.loads(sys.argv[1]))
import pathlib, transformers
# Imports take seconds; each life forks from here, so that kills land in the run itself.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            folder = pathlib.Path(settings.output)
            console = Console(file=open(os.devnull, "w"))
            if line.strip() == "resume":
                resume(folder, console)
            else:
                train(settings, console, overwrite=True)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print("ended", status, flush=True)
"""


class Lives:
    """Processes that train until they are done or killed."""

    def __init__(self, settings):
        words = [sys.executable, "-c", SCRIPT, json.dumps(dataclasses.asdict(settings))]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def live(self, word, seconds):
        """Train or resume; return whether the run ended by itself, with success."""
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = int(self.process.stdout.readline().split()[1])
        assert status in (0, signal.SIGKILL), f"the run failed with status {status}"
        return status == 0


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_prompts_that_load_or_none_and_a_run_that_resumes(place, tmp_path):
    output = tmp_path / "run"
    lives = Lives(tiny_settings(place, output, steps=4, handwritten=None, metric_rows=1))
    try:
        began = time.perf_counter()
        assert lives.live("train", None)
        full, whole = time.perf_counter() - began, weights(output)
        draw, states = random.Random(3), set()
        for number in range(20):
            word = "resume" if number % 2 and folders.is_run(output) and not _is_finished(output) else "train"
            lives.live(word, draw.uniform(0, full * 1.05))
            states.add(_loads(place, output))
            for leftover in output.glob("*.json"):
                json.loads(leftover.read_text())
            if (output / "loss_curve.png").exists():
                assert (output / "loss_curve.png").read_bytes().endswith(b"IEND\xaeB`\x82")
        assert states == {True, False}, "no kill came before the first prompt, or none after"
        if not folders.is_run(output) or _is_finished(output):
            lives.live("train", full / 2)
        assert lives.live("resume" if folders.is_run(output) and not _is_finished(output) else "train", None)
    finally:
        lives.process.kill()
        lives.process.communicate()
    assert_equal_weights(weights(output), whole)


def _is_finished(output):
    return json.loads((output / "training.json").read_text())["status"] == "finished"


def _loads(place: Path, output: Path) -> bool:
    """Load all prompts in the folder, where any incomplete one fails; return whether the trained prompt is there."""
    found = [path.parent for path in output.rglob("softprompt_zoo.json")]
    for folder in found:
        zoo.load(AutoModelForCausalLM.from_pretrained(place / "model"), folder)
    return output in found
