"""A deployment in which a request could lose its prompt is refused before it starts."""

import types

import pytest
from softprompt_zoo_vllm.settings import check_deployment


def deployment(policy="fail", runner="generate", mla=False, **parallel):
    """Return the parts of vLLM's configuration that are read."""
    return types.SimpleNamespace(
        kv_transfer_config=types.SimpleNamespace(kv_load_failure_policy=policy),
        parallel_config=types.SimpleNamespace(**parallel),
        model_config=types.SimpleNamespace(model="m", runner_type=runner, use_mla=mla),
    )


def test_what_can_work_is_taken():
    check_deployment(deployment(decode_context_parallel_size=1, tensor_parallel_size=2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"policy": "recompute"}, "kv_load_failure_policy is 'recompute'"),
        ({"runner": "pooling"}, "the runner is 'pooling'"),
        ({"decode_context_parallel_size": 2}, "decode_context_parallel_size is 2"),
        ({"prefill_context_parallel_size": 4}, "prefill_context_parallel_size is 4"),
        ({"mla": True}, "one latent per token"),
    ],
)
def test_what_would_lose_prompts_is_not(changes, reason):
    with pytest.raises(ValueError, match=reason):
        check_deployment(deployment(**changes))
