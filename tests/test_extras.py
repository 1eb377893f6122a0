"""What the base installation does without the packages of the extras, and the messages if they are missing."""

import ast
import builtins
import importlib
import multiprocessing
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from typer.testing import CliRunner

import softprompt_zoo as zoo
from softprompt_zoo.cli import app
from softprompt_zoo.errors import check_packages
from softprompt_zoo.testing import tiny_model

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


MODULES = {"pyyaml": "yaml"}
"""Packages whose module has a different name."""


def imported_as(requirements):
    """Return the modules that packages contain: most have the same name as their package."""
    names = {Requirement(line).name.replace("-", "_").lower() for line in requirements}
    return {MODULES.get(name, name) for name in names}


BANK = sorted(imported_as(EXTRAS["bank"]))
OPTIONAL = imported_as(line for extra in ("bank", "train", "peft", "search", "ray") for line in EXTRAS[extra])
OPTIONAL -= imported_as(PROJECT["dependencies"])


def use_without_extras(folder):
    """Do everything the base installation is for, with a freshly imported package that gets none of the extras."""
    importing = builtins.__import__

    def import_(name, globals=None, *args, **kwargs):
        importer = (globals or {}).get("__name__", "")
        if importer.startswith("softprompt_zoo") and name.partition(".")[0] in OPTIONAL:
            raise ImportError(f"{importer} imports {name}, which an extra brings")
        return importing(name, globals, *args, **kwargs)

    builtins.__import__ = import_
    for name in [name for name in sys.modules if name.startswith("softprompt_zoo")]:
        del sys.modules[name]
    zoo = importlib.import_module("softprompt_zoo")
    tiny = importlib.import_module("softprompt_zoo.testing").tiny_model
    for name in zoo.__all__:
        getattr(zoo, name)
    model = zoo.get_method("prefix")(tiny("llama"), num_virtual_tokens=3).eval()
    text = torch.arange(5, 14)[None]
    expected = model(input_ids=text).logits
    model.save_pretrained(folder / "saved")
    zoo.export(model, folder / "exported", to="peft")
    for name in ("saved", "exported"):
        assert torch.equal(zoo.load(tiny("llama"), folder / name).eval()(input_ids=text).logits, expected)
    app = importlib.import_module("softprompt_zoo.cli").app
    for words in (["--help"], ["bank", "--help"], ["methods"], ["show", "prefix_tuning"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output, result.exception)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_base_installation_needs_no_package_of_an_extra(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=use_without_extras, args=(tmp_path,))
    process.start()  # a fork, which has torch already, and its own modules
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.parametrize("missing", BANK)
def test_a_bank_names_what_is_missing_and_the_extra(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    told = re.escape(f'a bank of prompts needs {missing}, not installed; run: pip install "softprompt-zoo[bank]"')
    for address in (tmp_path / "bank", f"file://{tmp_path}/bank"):
        with pytest.raises(zoo.MissingPackageError, match=f"^{told}$"):
            zoo.PromptBank(address, tiny_model("llama"))
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    "words", [["list", "bank"], ["verify", "bank"], ["delete", "bank", "a"], ["import", "no-model", "bank", "folder"]]
)
def test_commands_of_banks_say_it_in_one_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    result = CliRunner().invoke(app, ["bank", *words])
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        'a bank of prompts needs lmdb, not installed; run: pip install "softprompt-zoo[bank]"'
    )
    assert not list(tmp_path.iterdir())


def test_all_missing_packages_are_named_and_what_is_there_passes():
    check_packages("this needs", "torch", "json")
    with pytest.raises(ImportError, match=r"^this needs zoo_a and zoo_b, not installed; run: pip install zoo_a zoo_b$"):
        check_packages("this needs", "zoo_a", "torch", "zoo_b")


def test_what_the_package_imports_is_declared():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    declared = imported_as([*lines, *metadata.requires("transformers")]) | {"softprompt_zoo", *sys.stdlib_module_names}
    imported = {}
    for path in (ROOT / "softprompt_zoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            imported |= {name.partition(".")[0]: path.name for name in names}
    assert imported
    assert {name: path for name, path in imported.items() if name not in declared} == {}
