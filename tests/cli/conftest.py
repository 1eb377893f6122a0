"""A trained prompt for all tests of commands."""

import pytest
from helpers.commands import invoke
from helpers.tiny_runs import save_tiny, write_rows


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with a tiny model, data, and a trained prompt."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    write_rows(folder / "data.jsonl", 20)
    words = ("--data", folder / "data.jsonl", "--output", folder / "run", "--template", r"{input} :\n")
    small = ("--steps", 2, "--metric-rows", 2, "--option", "num_virtual_tokens=3", "--dtype", "float32")
    result = invoke("train", folder / "model", "prefix", *words, *small)
    assert result.exit_code == 0, result.output
    return folder
