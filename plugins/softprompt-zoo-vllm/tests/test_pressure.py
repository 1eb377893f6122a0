"""Preempted, chunked, spread over workers, failing or replaced: a request has its own prompt, or ends with an error."""

import pytest
from conftest import add, make_place
from test_engine import engine, sampling
from transformers import AutoModelForCausalLM

import softprompt_zoo as zoo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def either(request, tmp_path_factory):
    """A model whose cache has one group, and one whose cache has two."""
    return make_place(tmp_path_factory.mktemp(request.param), request.param)


def rows_of(place, count=26):
    """Return names and ids of requests, and what each must write."""
    texts, names = place.texts(), [*place.names, None]
    rows = [(names[index % len(names)], texts[(index * 5) % len(texts)]) for index in range(count)]
    return rows, [place.expected(name, ids) for name, ids in rows]


def write(own, rows):
    """Run requests at once."""
    prompts = [{"prompt_token_ids": ids} for _, ids in rows]
    return own.generate(prompts, [sampling(name) for name, _ in rows], use_tqdm=False)


def written(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


PRESSURE = {
    "preempted": {"max_num_batched_tokens": 48, "num_gpu_blocks_override": 14, "max_num_seqs": 8},
    "no prefix cache": {"enable_prefix_caching": False},
    "blocks of 128": {"block_size": 128},
    "two tensor-parallel workers": {"tensor_parallel_size": 2},
}


@pytest.mark.parametrize("pressure", PRESSURE)
def test_answers_stay_the_same(either, pressure, request):
    rows, expected = rows_of(either)
    own = engine(either, max_model_len=256, disable_log_stats=False, **PRESSURE[pressure])
    request.addfinalizer(own.llm_engine.engine_core.shutdown)
    for _ in range(2):
        assert written(write(own, rows)) == expected
    preempted = sum(metric.value for metric in own.get_metrics() if metric.name == "vllm:num_preemptions")
    assert (preempted > 0) == (pressure == "preempted")


def test_failing_requests_end_alone(either, request):
    """Unknown, too long, deleted and damaged prompts, and requests that vLLM would run without their prompt."""
    rows, expected = rows_of(either, 12)
    own = engine(either, max_model_len=256)
    request.addfinalizer(own.llm_engine.engine_core.shutdown)
    long = ("prefix-130", [5] * 130)
    bad = [("nobody", [5, 6]), (7, [5, 6]), ("../bank", [5, 6]), long]
    outputs = write(own, [*rows, *bad])
    assert written(outputs[: len(rows)]) == expected
    for output in outputs[len(rows) :]:
        assert output.outputs[0].finish_reason == "error"
        assert not output.outputs[0].token_ids
    scored = sampling("prefix-5", prompt_logprobs=1)
    [output] = own.generate([{"prompt_token_ids": [5, 6, 7]}], scored, use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"
    assert written(write(own, rows)) == expected


def test_a_prompt_is_replaced_and_deleted_under_a_running_engine(llama, request):
    base = AutoModelForCausalLM.from_pretrained(llama.checkpoint)
    bank = zoo.PromptBank(llama.bank, base)
    own = engine(llama)
    request.addfinalizer(own.llm_engine.engine_core.shutdown)
    text, answers = llama.texts()[6], []
    for length in (40, 39, 40):
        add(bank, base, "changing", "prefix_tuning", seed=len(answers), num_virtual_tokens=length)
        expected = llama.expected("changing", text)
        for _ in range(2):  # the second time from vLLM's own cache
            assert written(write(own, [("changing", text)])) == [expected]
        answers.append(expected)
    assert len(set(map(tuple, answers))) == len(answers)
    bank.delete("changing")
    [output] = write(own, [("changing", text)])
    assert output.outputs[0].finish_reason == "error"


def test_the_answer_says_which_prompt_it_had(llama, request):
    own = engine(llama)
    request.addfinalizer(own.llm_engine.engine_core.shutdown)
    named, bare = write(own, [("prefix-5", [5, 6, 7]), (None, [5, 6, 7])])
    assert named.kv_transfer_params["soft_prompt"] == "prefix-5"
    assert named.kv_transfer_params["stamp"] == zoo.PrefixReader(llama.bank).find("prefix-5").stamp
    assert bare.kv_transfer_params is None
