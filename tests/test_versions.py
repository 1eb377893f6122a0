"""What `pyproject.toml` claims of transformers and peft is what `nox` tests, and what the docs say."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "explanation" / "limits.md"]


@pytest.fixture(scope="module")
def noxfile():
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def claims():
    """Return `(oldest, first that is not tested)` by package, read from `pyproject.toml` without nox."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["peft"]
    found = [re.fullmatch(r"(transformers|peft)>=([\d.]+),<([\d.]+)", line) for line in lines]
    return {match[1]: (match[2], match[3]) for match in found if match}


def test_both_ends_of_the_claim_are_an_environment(noxfile):
    assert set(claims()) == {"transformers", "peft"}
    environments = noxfile.environments()
    for name, (oldest, untested) in claims().items():
        assert f"{name}=={oldest}" in environments["oldest"]
        [newest] = [pin.removeprefix(f"{name}==") for pin in environments["newest"] if pin.startswith(f"{name}==")]
        major, minor, _ = map(int, newest.split("."))
        assert untested == f"{major}.{minor + 1}", "the claim ends behind the newest version that is tested"
    assert [len(pins) for pins in environments.values()] == [2, 2]


def test_the_oldest_environment_is_free_of_the_newest_ones_parts(noxfile):
    names = {name.replace("_", "-") for name in noxfile.constraints()}
    assert names >= noxfile.THEIRS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_docs_say_the_same(page):
    text = page.read_text("utf-8")
    for name, (oldest, untested) in claims().items():
        major, minor = untested.split(".")
        claim = f"{name} {oldest.removesuffix('.0')} to {major}.{int(minor) - 1}"
        assert claim in text, f"{page.name} does not say {claim!r}"
