"""The docs match the code: every block of Python runs and prints what it shows; everything public is documented."""

import contextlib
import dataclasses
import doctest
import html
import importlib
import inspect
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from helpers import installed_plugins
from helpers.accepted_peft import needs_accepted_peft
from helpers.walk import walk

import softprompt_zoo as zoo
from softprompt_zoo import hookspecs
from softprompt_zoo.cli import app
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.testing import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))] if path.exists()]
OUTPUT = r'(?:\n+```text title="Output"\n(.*?)^```$)?'
BLOCK = re.compile(r'^```python(?: title="([^"]*)")?\n(.*?)^```$' + OUTPUT, re.MULTILINE | re.DOTALL)
SHOWS_RECIPE = re.compile(r"^::: ([\w.]+)(?:\n    .*)*\n      members: \[RECIPE\b", re.MULTILINE)
DATA = re.compile(r'^```csv title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
REAL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAGE_WIDTH = 88
EQUATION_NOTES = ("  direct", '  reparameterization="mlp"', "  (kv_heads, tokens, head_dim)")
NEEDS_MODEL = "needs the embedded model"


def with_subcommands(commands):
    """Return every command by what the user types."""
    flat = {}
    for name, command in commands.items():
        subcommands = with_subcommands(getattr(command, "commands", {}))
        flat |= {f"{name} {sub}": inner for sub, inner in subcommands.items()} or {name: command}
    return flat


COMMANDS = with_subcommands(typer.main.get_command(app).commands)


def blocks(page):
    """Return title, line, code and shown output of every block of Python on a page, in order."""
    text = page.read_text("utf-8")
    found = [(m[1] or "", text.count("\n", 0, m.start(2)), m[2], m[3]) for m in BLOCK.finditer(text)]
    assert len(found) == len(re.findall(r"^\s*```+ *\{?\.?py", text, re.MULTILINE)), (
        f"{page}: a block is written otherwise"
    )
    return found


def with_code(needs_model):
    pages = [page for page in PAGES if blocks(page)]
    if not needs_model:
        return pages
    return [page for page in pages if any(title == NEEDS_MODEL for title, *_ in blocks(page)) or names_a_model(page)]


def names_a_model(page):
    return any(REAL_MODEL in code for _, _, code, _ in blocks(page))


def put_model(folder, with_model):
    """Let transformers find a model by the name in the docs: the embedded one, or a stand-in with random weights."""
    folder = folder / REAL_MODEL
    if with_model:
        folder.parent.mkdir()
        folder.symlink_to(resolve_model("smollm2"))
    else:
        tiny_model("llama").save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)


def run(page, folder, monkeypatch, with_model):
    """Run the blocks of a page in one namespace; a block with a file's name is written to that file, too.

    The output of a page that names a real model is compared only if it runs with that model.
    """
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    installed_plugins.install(folder / "installed-plugins", monkeypatch)
    monkeypatch.setenv("SOFTPROMPT_ZOO_PLUGINS", ",".join(page.stem for page in DOCS.glob("reference/plugins/*.md")))
    namespace = {"__name__": "docs"}
    if names_a_model(page):
        put_model(folder, with_model)
    for file, data in DATA.findall(page.read_text("utf-8")):
        (folder / file).write_text(data, "utf-8")
    before, imported = set(zoo.list_methods()), set(sys.modules)
    try:
        for title, line, code, output in blocks(page):
            if is_for_an_engine(title) or (title == NEEDS_MODEL and not with_model):
                continue
            if title.endswith(".py"):
                (folder / title).parent.mkdir(exist_ok=True)
                (folder / title).write_text(code, "utf-8")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("\n" * line + code, str(page), "exec"), namespace)
            if output is not None and (with_model or not names_a_model(page)):
                check_output(f"{page}:{line}", output, printed.getvalue())
    finally:
        for name in set(zoo.list_methods()) - before:
            zoo.unregister(name)
        for name in {name for name in sys.modules if name.startswith("softprompt_zoo_")} - imported:
            del sys.modules[name]


def check_output(where, shown, printed):
    """Compare as doctest does: `...` matches anything, and a line may be broken at a space."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(shown, printed, options), f"{where} prints\n{printed}"


def is_for_an_engine(title):
    """Return whether a block needs a package that is not here; the test of that engine names the block and runs it."""
    return title.startswith("needs ") and title != NEEDS_MODEL


ENGINES = sorted({(page.name, title) for page in PAGES for title, *_ in blocks(page) if is_for_an_engine(title)})


@pytest.mark.parametrize(("page", "title"), ENGINES)
def test_a_block_for_an_engine_is_run_by_a_test_of_it(page, title):
    tests = [*ROOT.glob("tests/engines/**/*.py"), *ROOT.glob("plugins/*/tests/*.py")]
    assert any(f'"{page}"' in text and f'"{title}"' in text for text in (path.read_text("utf-8") for path in tests))


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", with_code(needs_model=False), ids=name_of)
def test_every_block_of_python_runs(page, tmp_path, monkeypatch):
    if re.search(r"^(import|from) peft\b", page.read_text("utf-8"), re.MULTILINE):
        needs_accepted_peft()
    torch.manual_seed(0)
    run(page, tmp_path, monkeypatch, with_model=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", with_code(needs_model=True), ids=name_of)
def test_every_block_runs_with_the_embedded_model(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch, with_model=True)


@pytest.mark.parametrize("page", with_code(needs_model=False), ids=name_of)
def test_every_block_that_prints_shows_its_output(page):
    assert not [f"{page}:{line}" for _, line, code, output in blocks(page) if "print(" in code and output is None]


@pytest.mark.parametrize("page", with_code(needs_model=False), ids=name_of)
def test_no_line_of_code_is_wider_than_the_page(page):
    lines = [line for _, _, code, _ in blocks(page) for line in code.splitlines()]
    assert not [line for line in lines if len(line) > PAGE_WIDTH]


def test_few_blocks_do_not_run():
    titles = [title for page in PAGES for title, *_ in blocks(page)]
    assert titles.count(NEEDS_MODEL) <= 3


@pytest.mark.parametrize("hook", [name for name, f in vars(hookspecs).items() if hasattr(f, "softprompt_zoo_spec")])
def test_every_hook_is_documented_with_its_arguments(hook):
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    text = (DOCS / "reference/hooks.md").read_text("utf-8")
    assert f"## `{hook}({arguments})`" in text
    assert f"::: softprompt_zoo.hookspecs.{hook}" in text


@pytest.mark.parametrize("method", BUILTINS)
def test_every_method_has_a_page_in_the_navigation(method):
    page = DOCS / f"reference/methods/{method}.md"
    text = page.read_text("utf-8")
    assert f"::: softprompt_zoo.methods.{method}\n" in text
    assert "<svg" in text
    for alias in zoo.get_method(method)._loaded.aliases:
        assert f"`{alias}`" in text
    assert f"reference/methods/{method}.md" in pages_in_navigation()


def test_every_page_is_in_the_navigation():
    pages = [*DOCS.rglob("*.md"), *(notebook.with_suffix(".md") for notebook in DOCS.rglob("*.ipynb"))]
    assert sorted(pages_in_navigation()) == sorted(str(page.relative_to(DOCS)) for page in pages)


def test_the_way_of_a_virtual_token_is_the_one_it_takes():
    told = re.findall(r"^\d+\. `([\w/]+\.py)`", (DOCS / "explanation/architecture.md").read_text("utf-8"), re.MULTILINE)
    model = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=3)
    model(input_ids=torch.tensor([[5, 6, 7]]))  # does the work that is done only once
    taken = walk(lambda: model(input_ids=torch.tensor([[5, 6, 7]]))).files
    assert told == [file for file in taken if file in told]


@pytest.mark.parametrize("page", ["architecture", "new-kinds"])
def test_files_that_the_architecture_names_are_there(page):
    text = (DOCS / f"explanation/{page}.md").read_text("utf-8")
    named = re.findall(r"`(?:softprompt_zoo/)?((?:[a-z]+/)*(?:[\w]+\.py)?)`", text)
    assert len(named) > 3
    assert not [name for name in named if not (ROOT / "softprompt_zoo" / name).exists() and not (ROOT / name).exists()]


def pages_in_navigation():
    nav = re.search(r"^nav:\n.*", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE | re.DOTALL)[0]

    def leaves(part):
        if isinstance(part, str):
            return [part]
        return [leaf for child in (part.values() if isinstance(part, dict) else part) for leaf in leaves(child)]

    return leaves(yaml.safe_load(nav))


def test_links_of_the_front_page_lead_to_pages_from_the_repository_too():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text("utf-8"))
    assert links
    assert not [link for link in links if not (link.startswith("docs/") and (ROOT / link).is_file())]


def errors():
    for module in pkgutil.walk_packages(zoo.__path__, "softprompt_zoo."):
        if module.name != "softprompt_zoo.__main__":
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:  # the one extra that the tests do without
                if error.name != "ray":
                    raise
    found, waiting = set(), [zoo.ZooError]
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        if error.__module__.startswith("softprompt_zoo."):
            found.add(error)
    return found


def test_every_error_is_documented():
    text = (DOCS / "reference/errors.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert listed == {error.__name__ for error in errors()}


def test_every_public_name_is_documented():
    text = "".join(page.read_text("utf-8") for page in DOCS.glob("reference/python/*.md"))
    shown = set(re.findall(r"^::: softprompt_zoo\.(?:\w+\.)*(\w+)$", text, re.MULTILINE)) | set(
        re.findall(r"`(\w+)`", text)
    )
    assert set(zoo.__all__) <= shown


def test_every_command_is_documented():
    text = (DOCS / "reference/cli.md").read_text("utf-8")
    assert re.findall(r"^##+ `([\w -]+)`$", text, re.MULTILINE) == list(COMMANDS)
    assert re.findall(r"<!-- options of ([\w -]+) -->", text) == list(COMMANDS)
    how_to = (DOCS / "how-to/command-line.md").read_text("utf-8") + (DOCS / "how-to/debug-a-plugin.md").read_text(
        "utf-8"
    )
    for command in COMMANDS:
        assert f"softprompt-zoo {command}" in how_to


def test_commands_in_the_docs_exist():
    """Every line `softprompt-zoo COMMAND --option …` names an existing command and existing options."""
    for page in PAGES:
        for console in re.findall(
            r"^```(?:console|sh|bash)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
        ):
            for line in console.replace("\\\n", " ").splitlines():
                found = re.search(r"softprompt-zoo ([a-z]+(?:-[a-z]+)*)\b(.*)", line)
                if found and "pip install" not in line:
                    name = found[1] if found[1] in COMMANDS else " ".join([found[1], *found[2].split()[:1]])
                    options = {flag for parameter in COMMANDS[name].params for flag in parameter.opts} | {"--help"}
                    own, _, _ = found[2].partition(" -- ")  # texts or options of an engine follow
                    assert set(re.findall(r"(?<= )--[a-z-]+", own)) <= options, f"{page}: {line}"


def test_the_changelog_mentions_every_method_and_command():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = text.split("\n## ")[1]
    assert "Unreleased" in newest.splitlines()[0]
    for name in [*BUILTINS, *COMMANDS]:
        assert f"`{name}`" in newest, name


def recipes(monkeypatch):
    """Yield each recipe of the methods in this repository, after the page that shows it."""
    for page in sorted(DOCS.glob("reference/methods/*.md")) + sorted(DOCS.glob("reference/plugins/*.md")):
        [module] = SHOWS_RECIPE.findall(page.read_text("utf-8"))
        if page.parent.name == "plugins":
            monkeypatch.syspath_prepend(ROOT / f"plugins/softprompt-zoo-{page.stem.replace('_', '-')}")
        for recipe in vars(importlib.import_module(module)).values():
            if isinstance(recipe, zoo.Recipe):
                yield page.relative_to(DOCS).with_suffix(""), recipe


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text("utf-8")))


@pytest.mark.slow
def test_the_site_builds(tmp_path, monkeypatch):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    front = (tmp_path / "site/index.html").read_text("utf-8")
    assert 'src="assets/demo_loss_curve.png"' in front
    assert not re.findall(r'(?:src|href)="(https?:[^"]*\.(?:js|css|woff2?))"', front)
    assert 'href="tutorials/quickstart/"' in front
    assert "norm of keys" in text_of(tmp_path / "site/tutorials/quickstart/index.html")
    shown = (tmp_path / "site/reference/cli/index.html").read_text("utf-8")
    found = list(recipes(monkeypatch))
    assert len(found) > len(BUILTINS) + 2
    for page, recipe in found:
        text = text_of(tmp_path / f"site/{page}/index.html")
        for name, value in dataclasses.asdict(recipe).items():
            assert f"{name.replace('_', ' ')}\n{value}\n" in text, f"{page}: {name}"
    equations = text_of(tmp_path / "site/reference/methods/prefix_tuning/index.html").splitlines()
    assert len({line.index(note) for line in equations for note in EQUATION_NOTES if line.endswith(note)}) == 1
    for name, command in COMMANDS.items():
        for parameter in command.params:
            assert all(flag in shown for flag in parameter.opts if flag.startswith("--")), name
