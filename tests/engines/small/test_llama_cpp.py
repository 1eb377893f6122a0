"""llama.cpp, with a prefix as the state of its sequence, writes what the prompted model writes."""

import pytest
from engine_cases import count_different
from helpers.llama_cpp_engine import convert

from softprompt_zoo.embedded import resolve_model

pytest.importorskip("llama_cpp", reason="needs llama_cpp: nox -s small_engines")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_twenty_prompts(page, cases, tmp_path):
    run = page("small-engines.md", "needs llama_cpp")
    engine = run["open_engine"](convert(resolve_model("smollm2"), tmp_path / "base.gguf"))

    def answer(case):
        return run["answer_llama_cpp"](engine, case.prefix, case.ids, len(case.expected))

    assert count_different(answer, cases) == 0
