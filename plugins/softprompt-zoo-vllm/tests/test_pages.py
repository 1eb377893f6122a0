"""The docs' examples of vLLM and Ray run, and give what `generate` gives."""

import contextlib
import http.client
import importlib
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import make_place
from servers import Client, complete, serving

import softprompt_zoo as zoo

DOCS = Path(__file__).parents[3] / "docs" / "how-to"
pytestmark = pytest.mark.slow


def block(page, title):
    """Return the code of a block on a page."""
    begin = f'```python title="{title}"\n'
    return (DOCS / page).read_text("utf-8").partition(begin)[2].partition("```\n")[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("llama"), "llama")


def test_vllm_in_python(llama):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    names = {"model": llama.checkpoint, "bank": llama.bank, "name": "prefix-33"}
    code = block("serve-every-user.md", "needs vLLM").replace('"The museum"', '"w5 w6 w7"')
    exec(code.replace("max_model_len=512", 'max_model_len=512, dtype="float32", enforce_eager=True'), names)
    assert list(names["output"].outputs[0].token_ids) == llama.expected("prefix-33", [5, 6, 7])
    names["llm"].llm_engine.engine_core.shutdown()


def test_two_data_parallel_engines(llama, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    names = [*llama.names, None]
    rows = [(names[index % len(names)], [5 + index, 6, 7]) for index in range(24)]
    expected = [llama.expected(*row) for row in rows]
    with serving(llama, tmp_path, "--data-parallel-size", "2") as port, ThreadPoolExecutor(8) as threads:
        for _ in range(2):
            answers = threads.map(lambda row: complete(Client(port), *row), rows)
            assert [tokens for _, tokens in answers] == expected
        status, _, metrics = Client(port).send("GET", "/metrics")
    answered = re.findall(r'vllm:request_success_total\{engine="(\d)".*finished_reason="length".*\} (\d+)', metrics)
    assert status == 200
    assert all(int(count) > 0 for _, count in answered)
    assert {engine for engine, _ in answered} == {"0", "1"}


def test_two_replicas_of_ray_serve_over_one_bank(llama, tmp_path, monkeypatch):
    """The bank is at an fsspec address, which each replica reads for itself."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    serve = pytest.importorskip("ray.serve", reason="Ray is not installed: pip install ray[serve]")
    (tmp_path / "ray_app.py").write_text(block("serve-every-user.md", "needs Ray: ray_app.py"))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # like any other test
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    address = f"file://{tmp_path}/bank"
    near, far = zoo.PromptBank(llama.bank, llama.model), zoo.PromptBank(address, llama.model)
    names = ["prefix-5", "prefix-33", "input-40"]
    far.add_many({name: near[name] for name in names})
    module = importlib.import_module("ray_app")
    try:
        options = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True}
        serve.run(module.Engine.bind(llama.checkpoint, address, **options))
        for name in [*names, None] * 3:
            status, answer = ask(name, [5, 6, 7], 16)
            assert status == 200
            assert answer["ids"] == llama.expected(name, [5, 6, 7])
        status, answer = ask("nobody", [5, 6, 7], 16)
        assert (status, "there is no soft prompt 'nobody'" in answer["error"]) == (400, True)
    finally:
        serve.shutdown()


def ask(name, ids, max_tokens):
    """Send a request to Ray's proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=120)
    with contextlib.closing(connection):
        body = {"soft_prompt": name, "text": {"prompt_token_ids": ids}, "max_tokens": max_tokens}
        connection.request("POST", "/", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
