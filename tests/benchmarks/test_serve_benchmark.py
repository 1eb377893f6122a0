"""The command that serves a prompt from other engines, on the embedded model."""

import os
import types

import pytest

INPUTS, SAMPLED = 50, 10_000


@pytest.fixture(scope="module")
def served(benchmark, tmp_path_factory):
    """Return the benchmark with its settings, and what the prompted model writes; check that the bare one differs."""
    module = benchmark("serve")
    converter = os.environ.get("LLAMA_CPP_CONVERTER", "")
    place = str(tmp_path_factory.mktemp("served"))
    settings = module.Settings(work=place, steps=4, inputs=INPUTS, sampled=SAMPLED, converter=converter)
    bench = module.Bench(settings)
    reference = bench.reference(0)
    assert len(reference["answers"]) == INPUTS
    same = sum(a == b for a, b in zip(reference["answers"], reference["bare"], strict=True))
    assert same < INPUTS / 2, "the prompt has too little effect to compare anything"
    return types.SimpleNamespace(bench=bench, answers=reference["answers"])


@pytest.mark.slow
def test_transformers_alone_writes_the_same(served):
    assert served.bench.fresh(0)["answers"] == served.answers


@pytest.mark.slow
def test_no_soft_token_is_sampled_even_without_suppression(served):
    found = served.bench.sampled(0)
    assert found["tokens"] == SAMPLED
    assert found["soft"] == 0
    assert found["chance"] * SAMPLED < 0.1, "about as likely as not, one would have been sampled in some runs"


@pytest.mark.slow
def test_llama_cpp_writes_the_same(served, monkeypatch):
    """This needs llama-cpp-python, and llama.cpp's `convert_hf_to_gguf.py` at `LLAMA_CPP_CONVERTER`."""
    pytest.importorskip("llama_cpp")
    if not os.path.isfile(served.bench.settings.converter):
        pytest.skip("LLAMA_CPP_CONVERTER does not name llama.cpp's convert_hf_to_gguf.py")
    monkeypatch.delenv("PYTHONSAFEPATH")  # the converter imports modules next to it
    found = served.bench.llama_cpp(0)["answers"]
    assert sum(a == b for a, b in zip(found, served.answers, strict=True)) >= 0.96 * INPUTS


def test_what_is_missing_for_llama_cpp_is_named(benchmark, tmp_path, monkeypatch, capsys):
    module = benchmark("serve")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="llama_cpp: llama-cpp-python is not installed"):
        module.main(["--results", str(tmp_path), "--work", str(tmp_path / "work"), "--only", "llama_cpp"])
    assert not (tmp_path / "work").exists()
