"""The scheduler's side without vLLM: how much room a request gets, which blocks are filled, and how else it may end."""

import concurrent.futures
import types

import pytest
from softprompt_zoo_vllm import scheduling
from softprompt_zoo_vllm.catalog import PromptRefusedError
from softprompt_zoo_vllm.scheduling import Planner
from softprompt_zoo_vllm.settings import Settings

import softprompt_zoo as zoo


class FakeCatalog:
    """A catalog of two prompts, one of which may be replaced."""

    def __init__(self):
        self.entries = {"alice": zoo.PrefixEntry("alice", "aa", 5), "bob": zoo.PrefixEntry("bob", "bb", 40)}

    def find(self, name):
        if name not in self.entries:
            raise PromptRefusedError(f"there is no soft prompt {name!r}")
        return self.entries[name]


class FakeRequest(types.SimpleNamespace):
    """The parts of vLLM's `Request` that are used."""

    def __init__(self, name, ids=(7, 8, 9), request_id="r", **changes):
        chosen = None if name is None else {"soft_prompt": name}
        common = {"pooling_params": None, "skip_reading_prefix_cache": False, "prompt_embeds": None, "mm_features": []}
        super().__init__(request_id=request_id, kv_transfer_params=chosen, cache_salt=None, block_hashes=[], **common)
        self.sampling_params = types.SimpleNamespace(prompt_logprobs=None, extra_args=None)
        self.num_output_tokens = 0
        self.prompt_token_ids, self._all_token_ids, self.num_prompt_tokens = list(ids), list(ids), len(ids)
        self.__dict__.update(changes)

    def update_block_hashes(self):
        self.block_hashes.append(self.cache_salt)


def planner(**options):
    return Planner(Settings("bank", secret="s", **options), FakeCatalog(), [4, 8], max_model_len=64)


def blocks(*groups):
    """Return blocks of two groups; a window has moved past those that are `None`."""
    made = [[types.SimpleNamespace(block_id=one, is_null=one is None) for one in group] for group in groups]
    return types.SimpleNamespace(blocks=made)


def test_a_request_without_a_prompt_is_left_alone():
    own, request = planner(), FakeRequest(None)
    before = dict(vars(request))
    own.add(request)
    assert vars(request) == before
    assert own.matched_tokens(request, 0) == (0, False)
    own.allocated(request, blocks([1], [1]), 0)
    assert not own.take_step().loads
    assert own.finish(request) is None


def test_a_prompt_gets_room_and_its_blocks():
    own, request = planner(placeholder=3), FakeRequest("alice")
    own.add(request)
    assert request.prompt_token_ids == request._all_token_ids == [3] * 5 + [7, 8, 9]
    assert request.num_prompt_tokens == 8
    assert own.matched_tokens(request, 0) == (5, True)
    own.allocated(request, blocks([10, 11, 12], [None, 20]), 5)
    [load] = own.take_step().loads
    assert (load.name, load.stamp, load.begin, load.end) == ("alice", "aa", 0, 5)
    assert load.blocks == ((10, 11), (None,))
    own.allocated(request, blocks([10, 11, 12], [None, 20]), 0)  # vLLM asks again once the prompt is loaded
    assert not own.take_step().loads
    assert own.finish(request) == {"soft_prompt": "alice", "stamp": "aa", "num_tokens": 5}


def test_what_the_prefix_cache_has_is_not_loaded_again():
    own, request = planner(), FakeRequest("alice")
    own.add(request)
    assert own.matched_tokens(request, 4) == (1, True)
    own.allocated(request, blocks([10, 11], [20]), 1)
    assert own.take_step().loads[0].begin == 4
    assert own.matched_tokens(request, 8) == (0, False)


def test_only_the_same_content_of_the_same_prompt_shares_blocks():
    own, salts = planner(), []
    for name, before in [("alice", None), ("alice", None), ("bob", None), ("alice", "mine")]:
        request = FakeRequest(name, cache_salt=before)
        own.add(request)
        salts.append(request.cache_salt)
    own._catalog.entries["alice"] = zoo.PrefixEntry("alice", "a2", 5)
    own.add(replaced := FakeRequest("alice"))
    other = Planner(Settings("bank"), FakeCatalog(), [4, 8], 64)
    other.add(elsewhere := FakeRequest("alice"))
    assert salts[0] == salts[1]
    assert len({*salts, replaced.cache_salt, elsewhere.cache_salt, None}) == 6


@pytest.mark.parametrize("length", [5, 9])
def test_a_request_that_waited_gets_the_prompt_as_it_is_when_its_turn_comes(length):
    own, request = planner(placeholder=3), FakeRequest("alice", cache_salt="mine")
    own.add(request)
    own._catalog.entries["alice"] = zoo.PrefixEntry("alice", "a2", length)
    assert own.matched_tokens(request, 0) == (length, True)
    own.add(fresh := FakeRequest("alice", request_id="s", cache_salt="mine"))
    assert vars(request) == {**vars(fresh), "request_id": "r"}
    own.allocated(request, blocks([10, 11, 12], [20, 21]), length)
    [load] = own.take_step().loads
    assert (load.stamp, load.begin, load.end) == ("a2", 0, length)
    assert own.finish(request)["stamp"] == "a2"


def test_what_is_computed_with_a_prompt_goes_on_with_it():
    own, request = planner(), FakeRequest("bob")
    own.add(request)
    salt = request.cache_salt
    own._catalog.entries["bob"] = zoo.PrefixEntry("bob", "b2", 40)
    assert own.matched_tokens(request, 32) == (8, True)  # some of its blocks are in vLLM's cache
    request.num_output_tokens = 1
    assert own.matched_tokens(request, 0) == (40, True)  # preempted during its answer
    assert (request.cache_salt, own.finish(request)["stamp"]) == (salt, "bb")


def test_a_prompt_that_went_or_grew_while_its_request_waited():
    own, gone, grown = planner(), FakeRequest("alice", request_id="gone"), FakeRequest("bob", request_id="grown")
    own.add(gone)
    own.add(grown)
    own._catalog.entries = {"bob": zoo.PrefixEntry("bob", "b2", 70)}
    assert own.matched_tokens(gone, 0) == (5, True)  # a worker may still have it
    assert own.matched_tokens(grown, 0) == (1, True)
    assert grown.prompt_token_ids == [7, 8, 9]
    own.allocated(grown, blocks([10], [20]), 1)
    assert own.take_step().refused == ["grown"]
    assert "70 tokens and a text of 3 leave no room" in own.finish(grown)["error"]


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("nobody", {}, "there is no soft prompt 'nobody'"),
        ("alice", {"kv_transfer_params": "alice"}, "kv_transfer_params is 'alice'; expected"),
        ("bob", {"ids": range(3, 30)}, "40 tokens and a text of 27 leave no room"),
        ("alice", {"pooling_params": object()}, "pooling"),
        ("alice", {"skip_reading_prefix_cache": True}, "prompt_logprobs"),
        ("alice", {"prompt_embeds": object()}, "prompt_embeds"),
        ("alice", {"mm_features": [object()]}, "images"),
    ],
)
def test_what_cannot_have_its_prompt_ends_with_an_error(name, changes, problem):
    own, request = planner(), FakeRequest(name, **changes)
    ids = list(request.prompt_token_ids)
    own.add(request)
    assert request.prompt_token_ids == ids
    assert not request.skip_reading_prefix_cache
    assert own.matched_tokens(request, 0) == (1, True)
    own.allocated(request, blocks([10], [20]), 1)
    step = own.take_step()
    assert (step.loads, step.refused) == ([], ["r"])
    assert problem in own.finish(request)["error"]


def test_a_bank_at_an_address_keeps_only_its_own_requests_waiting(monkeypatch):
    coming = concurrent.futures.Future()
    monkeypatch.setattr(scheduling, "executor_for", lambda is_local: types.SimpleNamespace(submit=lambda *_: coming))
    own = Planner(Settings("s3://bucket/bank"), FakeCatalog(), [4, 8], 64)
    own.add(request := FakeRequest("alice"))
    assert own.matched_tokens(request, 0) == (None, False)
    assert own.matched_tokens(FakeRequest(None, request_id="other"), 0) == (0, False)
    coming.set_result(zoo.PrefixEntry("alice", "aa", 5))
    assert own.matched_tokens(request, 0) == (None, False)  # so far, vLLM has looked only for the text
    assert own.matched_tokens(request, 0) == (5, True)
    assert request.num_prompt_tokens == 8
