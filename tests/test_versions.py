"""The versions of transformers and peft that `pyproject.toml` claims are those that `nox` tests and the docs name."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGES = [ROOT / "README.md", ROOT / "docs" / "explanation" / "limits.md"]


@pytest.fixture(scope="module")
def noxfile():
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def claims():
    """Return `(oldest, first untested)` by package, read from `pyproject.toml` without nox."""
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["peft"]
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
    assert all([len(pins) == 2 for pins in environments.values()])


def test_the_extra_takes_no_transformers_beyond_the_one_that_is_tested_with_peft(noxfile):
    together = dict(pin.split("==") for pin in noxfile.environments()["together"])
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["peft"]):
        major, minor, _ = map(int, together[requirement.name].split("."))
        assert together[requirement.name] in requirement.specifier
        assert f"{major}.{minor + 1}.0" not in requirement.specifier


def test_the_other_environments_are_free_of_the_parts_of_the_constraints(noxfile):
    names = {name.replace("_", "-") for name in noxfile.constraints()}
    assert names >= noxfile.THEIRS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_docs_say_the_same(page):
    text = page.read_text("utf-8")
    for name, (oldest, untested) in claims().items():
        major, minor = untested.split(".")
        claim = f"{name} {oldest.removesuffix('.0')} to {major}.{int(minor) - 1}"
        assert claim in text, f"{page.name} does not say {claim!r}"


def test_the_table_of_engines_names_the_versions_that_are_tested(noxfile):
    page = (ROOT / "docs" / "how-to" / "serve-anywhere.md").read_text("utf-8")
    newest = noxfile.VLLM[-1].removesuffix(".0")
    assert f"| vLLM {newest} |" in page
    [(oldest, untested)] = [claim for name, claim in claims().items() if name == "transformers"]
    major, minor = untested.split(".")
    assert f"| transformers {oldest.removesuffix('.0')} to {major}.{int(minor) - 1} |" in page
    package = (ROOT / "plugins" / "softprompt-zoo-vllm" / "pyproject.toml").read_text("utf-8")
    claimed = " or ".join(version.removesuffix(".0") for version in noxfile.VLLM)
    assert f"and vLLM {claimed}, which" in package
