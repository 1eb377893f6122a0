"""The front, placed before a server that reports what reached it."""

import asyncio
import json

import pytest
from softprompt_zoo_vllm import gate as gates
from softprompt_zoo_vllm.admission import admission
from softprompt_zoo_vllm.front import Front
from softprompt_zoo_vllm.settings import Settings

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

OK = [
    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]},
    {"type": "http.response.body", "body": b"{}"},
]
FAILED = [
    {"type": "http.response.start", "status": 500, "headers": []},
    {"type": "http.response.body", "body": b'{"error": "Internal', "more_body": True},
    {"type": "http.response.body", "body": b' server error"}'},
]
FAILED_STREAM = [
    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]},
    {"type": "http.response.body", "body": b'data: {"error": {"message": "no", "code": 500}}\n\n', "more_body": True},
    {"type": "http.response.body", "body": b"data: [DONE]"},
]
EMPTY_STREAM = [FAILED_STREAM[0], FAILED_STREAM[2]]
STREAM = [
    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]},
    {"type": "http.response.body", "body": b'data: {"choices": []}', "more_body": True},
    {"type": "http.response.body", "body": b"data: [DONE]"},
]


class Server:
    """A server that records what reaches it, and answers with given messages."""

    def __init__(self, messages):
        self.messages = messages
        self.body = None
        self.came = None

    async def __call__(self, scope, receive, send):
        message = await receive()
        headers = dict(scope["headers"])
        assert int(headers.get(b"content-length", len(message["body"]))) == len(message["body"])
        self.body, self.came = message["body"], admission.get()
        for sent in self.messages:
            await send(dict(sent))


def ask(server, gate, body, path="/v1/completions", headers=(), method="POST"):
    """Send a request through the front, and return what a client sees: status, headers, body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    waiting = [
        {"type": "http.request", "body": data[:5], "more_body": True},
        {"type": "http.request", "body": data[5:]},
    ]
    if method == "GET":
        waiting = [{"type": "http.request", "body": data}]
    sent = []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(b"content-length", b"%d" % len(data)), *headers],
    }
    asyncio.run(Front(server, lambda: gate, lambda: ["base"])(scope, receive, send))
    start, *bodies = sent
    return start["status"], dict(start["headers"]), b"".join(part["body"] for part in bodies)


def error(answer):
    """Return status and message of an error."""
    status, _, body = answer
    return status, json.loads(body)["error"]["message"]


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Return a bank with two prefixes and a prompt that is not a prefix."""
    folder = tmp_path_factory.mktemp("front") / "bank"
    model = tiny_model("llama")
    bank = zoo.PromptBank(folder, model)
    for name, method, length in (
        ("alice", "prefix_tuning", 3),
        ("alina", "prefix_tuning", 2),
        ("input", "prompt_tuning", 2),
    ):
        prompted = zoo.get_method(method)(model, "made", num_virtual_tokens=length)
        bank.add(name, prompted.prompts["made"])
        zoo.detach(prompted)
    return bank


@pytest.fixture
def gate(bank):
    return gates.Gate(Settings(bank=str(bank.address)))


def test_a_request_without_a_prompt_passes_untouched(gate):
    server = Server(OK)
    body = b'{"model":"base",   "prompt": "hi"}'
    assert ask(server, gate, body) == (200, {b"content-type": b"application/json"}, b"{}")
    assert server.body == body
    assert server.came is not None
    assert server.came.entry is None
    for data in (b"no json", b"\xff", b""):
        assert ask(server, gate, data)[0] == 200
        assert server.body == data


def test_the_answer_says_which_prompt_it_had(gate):
    for messages in (OK, STREAM):
        server = Server(messages)
        status, headers, body = ask(server, gate, {"model": "base:alice", "prompt": "hi"})
        assert (status, headers[b"x-soft-prompt"]) == (200, b"alice")
        assert body == b"".join(message.get("body", b"") for message in messages)
        expected = {"model": "base", "prompt": "hi", "kv_transfer_params": {"soft_prompt": "alice"}}
        assert json.loads(server.body) == expected
        assert server.came.entry.num_tokens == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("alicee", "there is no soft prompt 'alicee'; did you mean 'alice'?"),
        ("../alice", "there is no soft prompt '../alice'"),
        ("", "there is no soft prompt ''"),
        (7, "soft_prompt is 7; expected the name of a prompt"),
        ({"a": 1}, "soft_prompt is {'a': 1}; expected the name of a prompt"),
        ("input", "the soft prompt 'input' cannot be served: "),
    ],
)
def test_a_prompt_that_cannot_be_had_is_400_before_the_server_hears_of_it(gate, name, reason):
    server = Server(OK)
    status, message = error(ask(server, gate, {"model": "base", "kv_transfer_params": {"soft_prompt": name}}))
    assert status == 400
    assert message.startswith(reason)
    assert "\n" not in message
    assert str(gate.catalog._reader.address) not in message
    assert server.body is None


def test_a_server_without_a_bank_refuses_prompts_in_parameters():
    server = Server(OK)
    status, message = error(ask(server, None, {"kv_transfer_params": {"soft_prompt": "alice"}}))
    assert (status, server.body) == (400, None)
    assert "this server has no bank" in message


def test_replaced_and_removed_prompts_are_seen_at_once(gate, bank):
    prompt = bank.get("alice")
    body = {"model": "base:later"}
    assert ask(Server(OK), gate, body)[0] == 400
    bank.add("later", prompt)
    assert ask(Server(OK), gate, body)[0] == 200
    bank.delete("later")
    assert ask(Server(OK), gate, body)[0] == 400


@pytest.mark.parametrize("messages", [FAILED, FAILED_STREAM, EMPTY_STREAM])
def test_a_failure_is_explained_where_the_prompt_is_what_is_wrong(gate, messages, monkeypatch):
    body, tried = {"model": "base:alice"}, []

    class Counting(Server):
        async def __call__(self, scope, receive, send):
            tried.append(scope)
            await super().__call__(scope, receive, send)

    status, headers, data = ask(Counting(messages), gate, body)
    assert len(tried) == 5  # the prompt may have been a different one for a moment
    assert status == 500  # nothing is wrong with the prompt: this is the server's own message
    assert b"x-soft-prompt" not in headers
    assert "error" in json.loads(data)

    def read(name):
        raise gates.PromptRefusedError(f"the soft prompt {name!r} is damaged")

    monkeypatch.setattr(gate.catalog, "read", read)
    assert error(ask(Server(messages), gate, body)) == (400, "the soft prompt 'alice' is damaged")


@pytest.mark.parametrize("messages", [FAILED, FAILED_STREAM, EMPTY_STREAM])
@pytest.mark.parametrize("times", [1, 2, 99])
def test_a_prompt_that_was_replaced_before_it_was_read_is_looked_up_again(gate, bank, messages, times):
    changing = [bank.get("alice"), bank.get("alina")]
    bank.add("changing", changing[0])
    seen = []

    class Replacing(Server):
        async def __call__(self, scope, receive, send):
            seen.append(admission.get().entry.num_tokens)
            if len(seen) <= times:
                bank.add("changing", changing[len(seen) % 2], overwrite=True)
            await Server(messages if len(seen) <= times else OK)(scope, receive, send)

    status, headers, data = ask(Replacing(OK), gate, {"model": "base:changing"})
    if times < 99:
        assert (status, headers[b"x-soft-prompt"], seen) == (200, b"changing", [3, 2, 3][: times + 1])
    else:
        assert (status, len(seen)) == (503, 20)
        assert "'changing' was replaced each time" in json.loads(data)["error"]["message"]
    bank.delete("changing")


@pytest.mark.parametrize("messages", [FAILED, FAILED_STREAM, EMPTY_STREAM])
def test_a_prompt_that_was_another_for_a_moment_is_tried_again(gate, messages):
    class Failing(Server):
        async def __call__(self, scope, receive, send):
            await Server(self.messages.pop(0))(scope, receive, send)

    assert ask(Failing([messages, OK]), gate, {"model": "base:alice"})[0] == 200


def test_a_stream_that_begins_with_a_refusal_has_its_status(gate):
    refusal = {"error": {"message": "too long", "code": 400}}
    event = {"type": "http.response.body", "body": f"data: {json.dumps(refusal)}\n\n".encode(), "more_body": True}
    status, headers, data = ask(Server([STREAM[0], event, STREAM[2]]), gate, {"model": "base:alice"})
    assert (status, json.loads(data)) == (400, refusal)
    assert b"x-soft-prompt" not in headers


def test_forms_and_other_methods_are_not_read(gate):
    server = Server(OK)
    form = [(b"content-type", b"multipart/form-data; boundary=x")]
    with pytest.raises(AssertionError):  # the server sees the first of two parts: nothing joined them
        ask(server, gate, {"model": "base:alice"}, headers=form)
    assert ask(server, gate, b"", method="GET", path="/v1/models")[0] == 200
    assert server.came is None


def allow(name, headers):
    return headers.get("x-user") == name


async def allow_later(name, headers):
    await asyncio.sleep(0)
    return headers.get("x-user") == name


def broken(name, headers):
    raise KeyError(name)


def careless(name, headers):
    return headers.get("x-user")


@pytest.mark.parametrize("hook", ["allow", "allow_later"])
def test_a_deployment_decides_who_may_have_which_prompt(bank, hook):
    gate = gates.Gate(Settings(bank=str(bank.address), authorize=f"{__name__}:{hook}"))
    for name in ("alice", "nobody"):  # the answer does not reveal whether a prompt exists
        server = Server(OK)
        status, message = error(ask(server, gate, {"model": f"base:{name}"}, headers=[(b"X-User", b"bob")]))
        assert (status, message) == (403, f"this request may not use the soft prompt {name!r}")
        assert server.body is None
    assert ask(Server(OK), gate, {"model": "base:alice"}, headers=[(b"X-User", b"alice")])[0] == 200
    assert ask(Server(OK), gate, {"model": "base"})[0] == 200
    own = error(ask(Server(OK), gate, {"model": "base:alic"}, headers=[(b"x-user", b"alic")]))
    assert own == (400, "there is no soft prompt 'alic'")  # without a hint at another user's prompt
    assert asyncio.run(gate.names("", "", 9, {"x-user": "alina"})) == ["alina"]


@pytest.mark.parametrize("hook", ["broken", "careless"])
def test_only_true_is_a_yes(bank, hook):
    gate = gates.Gate(Settings(bank=str(bank.address), authorize=f"{__name__}:{hook}"))
    assert ask(Server(OK), gate, {"model": "base:alice"}, headers=[(b"x-user", b"alice")])[0] == 403


@pytest.mark.parametrize("path", ["nowhere:allow", "json:nothing", "json", ":", "json:__doc__"])
def test_a_wrong_hook_stops_the_start(bank, path):
    with pytest.raises(ValueError, match=f"authorize is {path!r}"):
        gates.Gate(Settings(bank=str(bank.address), authorize=path))


def test_names_come_in_pages(bank, gate):
    assert asyncio.run(gate.names("", "", 2, {})) == ["alice", "alina"]
    assert asyncio.run(gate.names("", "alina", 2, {})) == ["input"]
    assert asyncio.run(gate.names("ali", "", 9, {})) == ["alice", "alina"]


def test_a_bank_at_an_address_is_looked_into_in_threads(bank, tmp_path):
    at_address = zoo.PromptBank(f"file://{tmp_path}", tiny_model("llama"))
    at_address.add("alice", bank.get("alice"))
    gate = gates.Gate(Settings(bank=f"file://{tmp_path}"))
    assert ask(Server(OK), gate, {"model": "base:alice"})[1][b"x-soft-prompt"] == b"alice"
    assert error(ask(Server(OK), gate, {"model": "base:alic"}))[1].endswith("did you mean 'alice'?")
