"""Which prompt a body names, and which routes would lose it."""

import pytest
from softprompt_zoo_vllm.catalog import PromptRefusedError
from softprompt_zoo_vllm.naming import COUNTING, SERVED, read_name

MODELS = ("base", "llama3:8b", "base:tuned")
ALICE = {"kv_transfer_params": {"soft_prompt": "alice"}}


@pytest.mark.parametrize(
    ("model", "base", "name"),
    [
        ("base:alice", "base", "alice"),
        ("llama3:8b:alice", "llama3:8b", "alice"),
        ("base:tuned:alice", "base:tuned", "alice"),
        ("base:", "base", ""),
    ],
)
def test_the_part_behind_a_served_model_is_the_prompt(model, base, name):
    body = {"model": model, "prompt": "text", "kv_transfer_params": {"other": 1}}
    named = read_name("/v1/completions", body, MODELS)
    assert named.name == name
    expected = {"model": base, "prompt": "text", "kv_transfer_params": {"other": 1, "soft_prompt": name}}
    assert named.body == expected
    assert body["model"] == model


@pytest.mark.parametrize(
    "body",
    [
        {"model": "llama3:8b"},
        {"model": "base:tuned"},
        {"model": "other:alice"},
        {"model": None},
        {"prompt": "no model"},
        {"model": "base", "kv_transfer_params": {"soft_prompt": None}},
        {"model": "base", "kv_transfer_params": None},
        {"model": "base", "kv_transfer_params": "alice"},
        {"model": "base", "sampling_params": "fast"},
        ["base:alice"],
        "base:alice",
    ],
)
def test_what_names_no_prompt_is_left_to_the_server(body):
    assert read_name("/v1/embeddings", body, MODELS) is None


@pytest.mark.parametrize("path", SERVED)
def test_parameters_name_a_prompt(path):
    assert read_name(path, {"model": "base", **ALICE}, MODELS).name == "alice"
    assert read_name(path, {"model": "base:alice", **ALICE}, MODELS).name == "alice"


def test_parameters_inside_of_sampling_parameters_are_seen():
    body = {"sampling_params": {"extra_args": ALICE}}
    assert read_name("/inference/v1/generate", body, MODELS).name == "alice"


@pytest.mark.parametrize("path", COUNTING)
def test_counting_tokens_needs_no_prompt(path):
    named = read_name(path, {"model": "base:alice", "prompt": "text"}, MODELS)
    assert (named.name, named.body) == (None, {"model": "base", "prompt": "text"})


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/v1/chat/completions/batch", "/v1/audio/translations"])
@pytest.mark.parametrize("body", [{"model": "base:alice"}, {"model": "base", **ALICE}])
def test_routes_that_would_lose_the_prompt_are_refused(path, body):
    with pytest.raises(PromptRefusedError, match=f"{path} would answer without the soft prompt 'alice'"):
        read_name(path, body, MODELS)


def test_beam_search_would_lose_the_prompt():
    with pytest.raises(PromptRefusedError, match="use_beam_search would answer without the soft prompt 'alice'"):
        read_name("/v1/completions", {"model": "base:alice", "use_beam_search": True}, MODELS)
    assert read_name("/v1/completions", {"model": "base", "use_beam_search": True}, MODELS) is None


@pytest.mark.parametrize("other", ["bob", 3, ["alice"]])
def test_two_prompts_are_refused(other):
    body = {"model": "base:alice", "kv_transfer_params": {"soft_prompt": other}}
    with pytest.raises(PromptRefusedError, match="names two soft prompts, 'alice' and"):
        read_name("/v1/completions", body, MODELS)
