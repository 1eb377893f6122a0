"""MLX, with a prefix as its prompt cache file, writes what the prompted model writes."""

import subprocess
import sys

import pytest
from engine_cases import count_different
from transformers import AutoTokenizer

from softprompt_zoo.embedded import resolve_model

pytest.importorskip("mlx_lm", reason="needs mlx_lm: nox -s small_engines")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def run(page):
    return page("small-engines.md", "needs mlx_lm")


@pytest.fixture(scope="module")
def words():
    return AutoTokenizer.from_pretrained(resolve_model("smollm2"))


@pytest.fixture(scope="module")
def folder(base, words, tmp_path_factory):
    """The base model and its tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("base")
    base.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(run, folder):
    return run["load_engine"](folder)


def test_twenty_prompts(run, engine, folder, cases, tmp_path):
    file = str(tmp_path / "prefix.safetensors")

    def answer(case):
        run["write_prompt_cache"](engine, case.prefix, file, folder)
        return run["answer_mlx"](engine, file, case.ids, len(case.expected))

    assert count_different(answer, cases) == 0


def test_its_own_command_takes_the_file(run, engine, folder, words, cases, tmp_path):
    file = str(tmp_path / "prefix.safetensors")
    case = next(case for case in cases if words.eos_token_id not in case.expected)
    run["write_prompt_cache"](engine, case.prefix, file, folder)
    asked = ["--prompt", words.decode(case.ids), "--max-tokens", str(len(case.expected)), "--verbose", "False"]
    command = [sys.executable, "-m", "mlx_lm", "generate", "--prompt-cache-file", file, "--ignore-chat-template"]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.strip() == words.decode(case.expected).strip()
