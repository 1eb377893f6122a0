"""The packages under plugins/: installed by pip into their own folder, used, tested and removed."""

import ast
import json
import re
import shutil
import tomllib
from pathlib import Path
from types import MappingProxyType

import pytest
from helpers.installed_plugins import PIP, install, run

import softprompt_zoo as zoo
from softprompt_zoo import testing
from softprompt_zoo.testing import ConformanceSuite

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
PROJECTS = {path.name: tomllib.loads((path / "pyproject.toml").read_text("utf-8"))["project"] for path in PACKAGES}
METHODS = {
    name: next(iter(project["entry-points"]["softprompt_zoo"]))
    for name, project in PROJECTS.items()
    if "softprompt_zoo" in project["entry-points"]  # the others support an engine
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Install all packages from copies, because a build leaves files next to its sources."""
    sources, site = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("site")
    for path in PACKAGES:
        shutil.copytree(path, sources / path.name, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    done = run("-m", "pip", "install", *PIP, str(site), *(str(sources / path.name) for path in PACKAGES))
    assert done.returncode == 0, done.stderr
    assert (site / "softprompt_zoo_cartridge" / "py.typed").exists()
    return site


@pytest.fixture(scope="module")
def on_the_path(tmp_path_factory):
    """Make all packages importable without an installation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTPROMPT_ZOO_PLUGINS", ",".join(METHODS.values()))
        install(tmp_path_factory.mktemp("installed"), patch)
        yield


def test_both_packages_are_here():
    assert set(METHODS.values()) >= {"llama_adapter", "template"}


@pytest.mark.parametrize("name", METHODS)
def test_a_package_is_named_after_its_method(name):
    package, project, method = ROOT / "plugins" / name, PROJECTS[name], METHODS[name]
    module = f"softprompt_zoo_{method}"
    assert project["name"] == package.name == f"softprompt-zoo-{method.replace('_', '-')}"
    assert project["entry-points"]["softprompt_zoo"] == {method: module}
    assert (package / f"{module}.py").is_file() or (package / module / "__init__.py").is_file()
    assert (package / "README.md").is_file()
    assert list((package / "tests").glob("test_*.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.name)
def test_packages_use_public_names_only(path):
    """Those are `import softprompt_zoo as zoo`, `zoo.NAME` in its `__all__`, and names in `softprompt_zoo.testing`."""
    tree = ast.parse(path.read_text("utf-8"))
    imported = {a.name: a.asname for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    froms = {n.module: [a.name for a in n.names] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    hosts = {name: alias for name, alias in imported.items() if re.match(r"softprompt_zoo\b", name)}
    assert hosts.items() <= {("softprompt_zoo", "zoo")}
    assert {name for name in froms if re.match(r"softprompt_zoo\b", name or "")} <= {"softprompt_zoo.testing"}
    assert set(froms.get("softprompt_zoo.testing", ())) <= set(testing.__all__)
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "zoo"}
    assert used <= set(zoo.__all__)
    is_of_a_method = path.relative_to(ROOT / "plugins").parts[0] in METHODS
    assert used or froms or hosts or path.parent.name == "tests" or not is_of_a_method


@pytest.mark.parametrize("method", sorted(set(METHODS.values()) - {"template"}))
def test_a_published_method_has_a_page_and_a_line_in_the_changelog(method):
    page = (ROOT / f"docs/reference/plugins/{method}.md").read_text("utf-8")
    assert f"::: softprompt_zoo_{method}\n" in page
    assert "<svg" in page
    folder = ROOT / f"plugins/softprompt-zoo-{method.replace('_', '-')}"
    pages = (folder / f"softprompt_zoo_{method}.py", folder / f"softprompt_zoo_{method}/__init__.py")
    source = next(page for page in pages if page.is_file()).read_text("utf-8")
    options = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Config").body
    for option in [node.target.id for node in options if isinstance(node, ast.AnnAssign)]:
        assert f"| `{option}` |" in page or "members: [RECIPE, Config" in page, option
    assert f"`{method}`" in (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]


@pytest.mark.slow
def test_installed_packages_are_listed_checked_and_shown(site):
    listed = run("-m", "softprompt_zoo", "plugins", "--check", "--json", site=site)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    reports = {report["name"]: report for report in json.loads(listed.stdout)}
    for name, method in METHODS.items():
        report = reports[method]
        assert report["origin"] == f"{name} {PROJECTS[name]['version']}"
        assert report["problem"] is None
    methods = json.loads(run("-m", "softprompt_zoo", "methods", "--json", site=site).stdout)
    summaries = {found["name"]: found["summary"] for found in methods}
    assert summaries["llama_adapter"].startswith("LLaMA-Adapter: trains prompts for the upper layers")
    assert summaries["template"].startswith("Template: trains embeddings")


USE = """
import os, sys, torch
import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
torch.set_num_threads(1)
site, folder, methods = sys.argv[1], sys.argv[2], sys.argv[3:]
text = torch.tensor([[5, 6, 7, 8]])
for name in methods:
    options, _ = zoo.get_method(name).example_options
    model = zoo.get_method(name)(tiny_model("llama"), **options)
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.add_(0.3)
    model.save_pretrained(f"{folder}/{name}")
    assert torch.equal(zoo.load(tiny_model("llama"), f"{folder}/{name}")(text).logits, model(text).logits)
    assert not torch.equal(tiny_model("llama")(text).logits, model(text).logits)
sys.path.remove(site)  # as if they had never been installed
os.environ["SOFTPROMPT_ZOO_PLUGINS"] = ""  # nor elsewhere
for name in methods:
    assert name not in zoo.list_methods()
    bare = tiny_model("llama")
    try:
        zoo.load(bare, f"{folder}/{name}")
    except zoo.UnknownMethodError as error:
        print(error)
    assert not hasattr(bare, "prompts")
"""


@pytest.mark.slow
def test_saved_prompts_say_what_to_install_once_a_package_is_gone(site, tmp_path):
    done = run("-c", USE, str(site), str(tmp_path), *METHODS.values(), site=site)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(METHODS)
    for line, (name, method) in zip(lines, METHODS.items(), strict=True):
        assert f"needs the method {method!r}, which is not installed" in line
        assert f"run: pip install {name}=={PROJECTS[name]['version']}" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PROJECTS) - set(METHODS)))
def test_a_package_for_an_engine_passes_its_tests_without_the_engine(name):
    """Tests that start an engine are slow tests; `nox -s engines` runs them."""
    done = run("-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "plugins" / name))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_passes_its_own_tests(package, site):
    """The tests run as a user would run them: with the package installed, from its folder."""
    done = run("-m", "pytest", "-p", "no:cacheprovider", str(package), site=site, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    "architecture", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "bert"))]
)
class TestPromises(ConformanceSuite):
    """The promises without an installation: each on one model, for every second method; slow tests cover the rest."""

    turns = 2
    in_turns = MappingProxyType({"_method": [*METHODS.values()]})

    @pytest.fixture(autouse=True, params=METHODS.values())
    def _method(self, request, on_the_path):
        self.method = request.param
        self.options, self.longer = zoo.get_method(self.method).example_options
