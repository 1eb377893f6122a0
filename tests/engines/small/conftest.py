"""Fixtures for the tests of small engines: the prompts, and the code on the docs' pages."""

import re
from pathlib import Path

import pytest
import torch
from engine_cases import PROMPTS, make_case
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt_zoo.embedded import resolve_model

PAGES = Path(__file__).parents[3] / "docs" / "how-to"
BLOCK = re.compile(r'^```python(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """Run a page's code, on its tiny model, in untitled blocks and those of given titles; return what it defines."""

    def run(name, *titles):
        namespace = {"__name__": "page"}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("page"))
            for title, code in BLOCK.findall((PAGES / name).read_text("utf-8")):
                if title in {"", *titles}:
                    exec(compile(code, name, "exec"), namespace)
        return namespace

    return run


@pytest.fixture(scope="session")
def base():
    """The model without prompts."""
    return AutoModelForCausalLM.from_pretrained(resolve_model("smollm2"), dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """Prefixes with 1, 3, … 19 tokens, and prompts at the input embeddings with 2, 4, … 20."""
    folder = tmp_path_factory.mktemp("prefixes")
    source = resolve_model("smollm2")
    words = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    torch.manual_seed(0)
    return [make_case(model, words, number, folder / str(number)) for number in range(PROMPTS)]
