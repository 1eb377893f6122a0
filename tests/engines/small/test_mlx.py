"""MLX writes, behind the prompt cache file of a prefix, what the prompted model writes."""

import pytest
from engine_cases import count_different

pytest.importorskip("mlx_lm", reason="needs mlx_lm: nox -s engines")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_twenty_prompts(page, cases, base, tmp_path):
    run, file = page("small-engines.md", "needs mlx_lm"), str(tmp_path / "prefix.safetensors")
    base.save_pretrained(tmp_path / "base")
    engine = run["load_engine"](tmp_path / "base")

    def answer(case):
        run["write_prompt_cache"](engine, case.prefix, file)
        return run["answer_mlx"](engine, file, case.ids, len(case.expected))

    assert count_different(answer, cases) == 0
