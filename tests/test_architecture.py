"""The shape of the package: imports point one way, files stay short, a method is one page."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import softprompt_zoo
from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.registry.plugin_check import ACTING_HOOKS, HOOKS, OPTIONAL_HOOKS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "softprompt_zoo"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def succeed(*command):
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def name_of(path):
    return str(path.relative_to(ROOT))


def tool(name):
    """Return the path of a program that is installed next to this interpreter."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert path is not None, f"{name} is not installed"
    return path


def test_imports_point_one_way():
    succeed(tool("lint-imports"), "--no-cache")


def test_ruff_is_content():
    succeed(sys.executable, "-m", "ruff", "check", ".")


@pytest.mark.slow
def test_mypy_is_content():
    succeed(sys.executable, "-m", "mypy")


def test_the_numbers_of_the_house_are_kept(benchmark):
    """The numbers are those of `benchmarks/house.py`, whose `--lines` shows the places."""
    module = benchmark("house")
    measured = {name: number.measure(module.House(ROOT)) for name, number in module.NUMBERS.items()}
    assert not {name: value for name, value in measured.items() if not module.NUMBERS[name].is_kept(value)}


def test_the_contract_between_methods_covers_them_all():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    [modules] = [contract["modules"] for contract in contracts if contract["name"] == "methods do not know each other"]
    assert modules == ["softprompt_zoo.methods.*"] or set(modules) == {
        f"softprompt_zoo.methods.{name}" for name in BUILTINS
    }


@pytest.mark.parametrize("method", BUILTINS)
def test_a_method_is_named_on_its_own_page_only(method):
    """This includes code, strings and comments; `BUILTINS` is the one other line that names it."""
    own = PACKAGE / "methods" / f"{method}.py"
    found = {
        f"{name_of(path)}:{number}"
        for path in SOURCES
        if path not in (own, PACKAGE / "methods/__init__.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(rf"\b{method}\b", line)
    }
    assert not found, f"{method} is named in {', '.join(sorted(found))}"
    assert (PACKAGE / "methods/__init__.py").read_text("utf-8").count(f'"{method}"') == 1


def test_every_method_page_is_built_in():
    pages = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__"}
    assert pages == set(BUILTINS)


@pytest.mark.parametrize("method", BUILTINS)
def test_a_method_page_has_its_parts_in_order(method):
    tree = ast.parse((PACKAGE / "methods" / f"{method}.py").read_text("utf-8"))
    text = ast.get_docstring(tree)
    parts = ["Enters at:", "Trained:", "Merges to:", "Source:", "Differs from the source:", "PEFT:"]
    places = [text.find(part) for part in parts]
    assert min(places) > 0, parts[places.index(-1)]
    assert places == sorted(places)
    names = [
        node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"
    ]
    assert names[:2] == ["Config", "Parameters"]
    assert names[2] in ACTING_HOOKS
    assert names[3:] == [hook for hook in (*HOOKS, *OPTIONAL_HOOKS) if hook in names[3:]]


@pytest.mark.parametrize("statement", ["import softprompt_zoo", "import softprompt_zoo as z; z.list_methods()"])
def test_importing_and_listing_load_no_heavy_package(statement):
    heavy = "{'torch', 'transformers', 'peft', 'numpy', 'softprompt_zoo.methods.prompt_tuning'}"
    code = f"import sys; {statement}; found = {heavy} & set(sys.modules); assert not found, found"
    succeed(sys.executable, "-c", code)


def test_the_command_line_starts_without_heavy_packages():
    heavy = "{'torch', 'transformers', 'peft'}"
    succeed(
        sys.executable,
        "-c",
        f"import sys, softprompt_zoo.cli; found = {heavy} & set(sys.modules); assert not found, found",
    )


def test_ci_runs_the_readmes_second_command():
    commands = re.findall(r"```bash\n(.+?)\n```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert " -e " not in commands[1], "what is tested is the wheel, not the source folder"


def test_what_is_tested_is_what_is_installed():
    """The package is not in the source folder, unless it was installed with `pip install -e`."""
    installed = metadata.distribution("softprompt-zoo")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    place = ROOT if origin.get("dir_info", {}).get("editable") else Path(installed.locate_file("")).resolve()
    assert Path(softprompt_zoo.__file__).resolve().parents[1] == place
