"""`new-plugin` writes a package that works at once, from the template under `plugins/`."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from helpers.commands import invoke, refusal
from helpers.installed_plugins import PIP, run

import softprompt_zoo as zoo
from softprompt_zoo.testing import check_method
from softprompt_zoo.testing.new_package import SUFFIX, TEMPLATE

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "plugins" / "softprompt-zoo-template"


def test_the_template_that_is_installed_is_the_one_under_plugins():
    tracked = subprocess.run(["git", "ls-files"], cwd=SOURCE, capture_output=True, text=True, check=True).stdout.split()
    copies = {
        path.relative_to(TEMPLATE).as_posix(): path.read_bytes() for path in TEMPLATE.rglob("*") if path.is_file()
    }
    assert copies == {f"{name}{SUFFIX}": (SOURCE / name).read_bytes() for name in tracked}
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "data/**/*" in patterns["softprompt_zoo"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("new-plugin", "Loud-Words")
    assert result.exit_code == 0, result.output
    assert "cd softprompt-zoo-loud-words\n" in result.stdout
    return tmp_path / "softprompt-zoo-loud-words"


def test_a_new_package_is_named_after_its_method_throughout(package):
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == package.name
    assert project["entry-points"] == {"softprompt_zoo": {"loud_words": "softprompt_zoo_loud_words"}}
    texts = {path: path.read_text() for path in package.rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if "template" in text.lower()]
    assert not [path for path, text in texts.items() if "../" in text]
    assert {path.name for path in texts} == {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "softprompt_zoo_loud_words.py",
        "test_conformance.py",
    }


def test_a_new_package_keeps_promises(package, monkeypatch):
    monkeypatch.syspath_prepend(package)
    module = __import__("softprompt_zoo_loud_words")
    zoo.register(module, "loud_words")
    try:
        assert zoo.get_method("loud_words").summary.startswith("Loud words: trains embeddings")
        checked = check_method("loud_words", architectures=["llama"], promises=(1, 2, 7, 9))
        assert checked.is_kept
        assert len(checked.checks) == 6
    finally:
        zoo.unregister("loud_words")


@pytest.mark.slow
def test_the_tests_of_a_new_package_pass_at_once(package, tmp_path):
    """The package is installed by pip, into its own folder."""
    done = run("-m", "pip", "install", *PIP, str(tmp_path / "site"), str(package))
    assert done.returncode == 0, done.stderr
    listed = run("-m", "softprompt_zoo", "plugins", "--check", site=tmp_path / "site")
    assert "loud_words" in listed.stdout
    done = run("-m", "pytest", "-p", "no:cacheprovider", str(package), site=tmp_path / "site", timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_names_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, message in {
        "prefix": "already has the name 'prefix'; choose another",
        "Prompt-Tuning": "already has the name 'prompt_tuning'; choose another",
        "class": "a Python keyword; choose another, such as class_prompt",
        "a b": "expected a letter, then letters",
        "9lives": "expected a letter, then letters",
        "two__bars": "expected a letter, then letters",
        "x" * 61: "at most 60 characters",
        "../up": "expected a letter, then letters",
    }.items():
        assert message in refusal("new-plugin", name)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    assert "taken exists and is not an empty folder" in refusal("new-plugin", "fine", "--output", "taken")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["taken", "thesis.txt"]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "softprompt_zoo_fine.py").write_text("")
    assert "a module softprompt_zoo_fine is installed" in refusal("new-plugin", "fine")
