"""accelerate on two processes: the gradients equal those of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import random_text

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).with_name("sharded.py")


def of_two_processes(how, method):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), how, method],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    return json.loads(next(line for line in printed[0].splitlines() if line.startswith("{")))


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_gradients_are_those_of_one_process(how, method):
    torch.manual_seed(0)
    model = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=4)
    for parameter in model.prompts.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    losses = [model(input_ids=ids, labels=ids).loss for ids in (random_text(8, 40), random_text(8, 41))]
    torch.stack(losses).mean().backward()
    found = of_two_processes(how, method)
    assert found["processes"] == 2
    assert found["loss"] == pytest.approx(losses[0].item(), rel=1e-5)
    expected = {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}
    assert found["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(torch.tensor(found["gradients"][name]), gradient, rtol=1e-4, atol=1e-5)
