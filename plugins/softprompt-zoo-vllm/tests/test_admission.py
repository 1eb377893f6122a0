"""Requests that cannot have their prompt are refused before they enter the engine, with stand-ins for vLLM's types."""

import types

import pytest
from softprompt_zoo_vllm.admission import Admission, admission, check
from softprompt_zoo_vllm.catalog import PromptRefusedError

import softprompt_zoo as zoo

MODEL = types.SimpleNamespace(max_model_len=32)
ENTRY = zoo.PrefixEntry("alice", "00", 20)


class Gate:
    """A bank that holds alice."""

    def __init__(self, is_guarded=False):
        self.is_guarded = is_guarded
        self.catalog = self
        self.looked_up = []

    def find(self, name):
        self.looked_up.append(name)
        if name != "alice":
            raise PromptRefusedError(f"there is no soft prompt {name!r}")
        return ENTRY


def request(name="alice", **changes):
    """Return a request of five tokens."""
    plain = {
        "request_id": "cmpl-1",
        "kv_transfer_params": {"soft_prompt": name},
        "pooling_params": None,
        "sampling_params": types.SimpleNamespace(prompt_logprobs=None),
        "skip_reading_prefix_cache": False,
        "prompt_token_ids": [1] * 5,
        "num_prompt_tokens": 5,
        "prompt_embeds": None,
        "mm_features": [],
        "resumable": False,
    }
    return types.SimpleNamespace(**{**plain, **changes})


@pytest.fixture
def came():
    """A request that came through the front with alice's prompt."""
    token = admission.set(Admission(ENTRY))
    yield
    admission.reset(token)


def test_a_request_that_fits_is_taken():
    gate = Gate()
    check(request(), gate, MODEL)
    assert gate.looked_up == ["alice"]


def test_what_the_front_looked_up_is_not_looked_up_again(came):
    gate = Gate(is_guarded=True)
    check(request(), gate, MODEL)
    assert gate.looked_up == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "bob"}, "there is no soft prompt 'bob'"),
        ({"kv_transfer_params": "alice"}, "kv_transfer_params is 'alice'; expected"),
        ({"kv_transfer_params": ["alice"]}, "kv_transfer_params is .'alice'.; expected"),
        ({"num_prompt_tokens": 12}, "of 20 tokens and a text of 12 leave no room"),
        ({"skip_reading_prefix_cache": True}, "prompt_logprobs"),
        ({"sampling_params": types.SimpleNamespace(prompt_logprobs=0)}, "prompt_logprobs"),
        ({"prompt_embeds": object()}, "prompt_embeds"),
        ({"prompt_token_ids": None}, "prompt_embeds"),
        ({"mm_features": [object()]}, "images"),
        ({"pooling_params": object()}, "pooling"),
        ({"resumable": True}, "in pieces"),
    ],
)
def test_a_request_that_would_lose_its_prompt_is_refused(changes, reason):
    with pytest.raises(PromptRefusedError, match=reason):
        check(request(**changes), Gate(), MODEL)


def test_a_server_without_a_bank_refuses_prompts_and_nothing_else():
    with pytest.raises(PromptRefusedError, match="'alice', but this server has no bank"):
        check(request(), None, MODEL)
    check(request(kv_transfer_params={"other": 1}), None, MODEL)
    check(request(kv_transfer_params=None, request_id="cmpl-1-beam-0"), None, MODEL)


def test_headers_that_decide_must_have_been_seen(came):
    gate = Gate(is_guarded=True)
    with pytest.raises(PromptRefusedError, match="depends on its HTTP headers"):  # smuggled in with alice's
        check(request(name="bob"), gate, MODEL)
    admission.set(None)
    with pytest.raises(PromptRefusedError, match="depends on its HTTP headers"):
        check(request(), gate, MODEL)
    assert gate.looked_up == []


def test_beam_search_is_refused_where_no_front_saw_the_request():
    beam = request(kv_transfer_params=None, request_id="cmpl-1-5f-beam-0")
    with pytest.raises(PromptRefusedError, match="use_beam_search drops"):
        check(beam, Gate(), MODEL)
    token = admission.set(Admission())
    check(beam, Gate(), MODEL)
    admission.reset(token)
