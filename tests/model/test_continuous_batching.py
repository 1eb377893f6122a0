"""Continuous batching is refused with an alternative, and the model works afterwards."""

import inspect
import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

import softprompt_zoo as zoo
from softprompt_zoo.model import generation
from softprompt_zoo.testing import tiny_tokenizer
from softprompt_zoo.testing.subject import Subject, random_text

TEXT = random_text(7, 5)
PLAIN = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=100, pad_token_id=0)
CALLS = {
    "generate_batch": lambda model: model.generate_batch(TEXT.tolist(), generation_config=PLAIN),
    "generate": lambda model: model.generate(TEXT, generation_config=PLAIN, cache_implementation="paged"),
    "context": lambda model: model.continuous_batching_context_manager(PLAIN).__enter__(),
    "init": lambda model: model.init_continuous_batching(PLAIN),
}


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_way_in_is_refused_and_changes_nothing(call, method):
    check_is_refused(call, Subject.prompted("llama", method, {"num_virtual_tokens": 4}).model)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_check_notices_that_nothing_is_refused(call, monkeypatch):
    model = Subject.prompted("llama", "prefix_tuning", {"num_virtual_tokens": 4}).model
    monkeypatch.delattr(generation.PromptedGeneration, "init_continuous_batching")
    with pytest.raises(ValueError, match="softprompt_zoo_sdpa"):  # transformers' own message
        check_is_refused(call, model)


def check_is_refused(call, model):
    expected, config = model.generate(TEXT, generation_config=PLAIN), model.config.to_dict()
    with pytest.raises(zoo.UnsupportedError, match=r'call generate, .*zoo.export\(model, folder, to="vocabulary"'):
        call(model)
    assert model.config.to_dict() == config
    assert torch.equal(model.generate(TEXT, generation_config=PLAIN), expected)


@pytest.mark.skipif(
    not hasattr(transformers, "ContinuousBatchingConfig"),
    reason="this transformers cannot be told to take little memory",
)
def test_the_way_on_writes_the_same_text(tmp_path):
    """The test asks for a small cache because the default takes most of the memory."""
    model = Subject.prompted("llama", "prompt_tuning", {"num_virtual_tokens": 4}).model
    expected = model.generate(TEXT, generation_config=PLAIN)[0, TEXT.shape[1] :]
    zoo.export(model, tmp_path, to="vocabulary", tokenizer=tiny_tokenizer())
    soft = json.loads((tmp_path / "soft_tokens.json").read_text())["prompts"]["default"]["ids"]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = transformers.ContinuousBatchingConfig
    page_size = "page_size" if "page_size" in inspect.signature(config).parameters else "block_size"
    sizes = {"num_blocks": 8, "max_batch_tokens": 64, page_size: 32, "max_requests_per_batch": 4}
    small = config(use_async_batching=False, **sizes)
    requests = [[*soft, *TEXT[0].tolist()]]
    answers = exported.generate_batch(requests, generation_config=PLAIN, continuous_batching_config=small)
    assert [answer.generated_tokens for answer in answers.values()] == [expected.tolist()]
