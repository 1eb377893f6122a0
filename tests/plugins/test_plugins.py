"""Plugins as third parties write them: packages of two files that are installed, used, broken and removed."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
import warnings
from pathlib import Path

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.model.making import make_prompt
from softprompt_zoo.registry.discovery import ENVIRONMENT_VARIABLE
from softprompt_zoo.registry.registry import Registry
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.trial.examination import examine

DOCS = Path(__file__).parents[2] / "docs"
FILES = {
    name: text
    for page in (DOCS / "tutorials/first-plugin.md", DOCS / "how-to/add-a-method.md")
    for name, text in re.findall(r'^```\w+ title="([\w./-]+)"\n(.*?)^```$', page.read_text(), re.DOTALL | re.MULTILINE)
}
ROUTED_PROJECT, ROUTED = FILES["softprompt-zoo-routed/pyproject.toml"], FILES["softprompt_zoo_routed.py"]
LOW_RANK_PROJECT, LOW_RANK = FILES["pyproject.toml"], FILES["softprompt_zoo_low_rank.py"]
WRAPPER = FILES["softprompt_zoo_halve.py"]
THREE_HOOKS = (
    LOW_RANK
    + """

@zoo.hookimpl
def inject(tokens: zoo.VirtualTokens) -> zoo.Placement:
    return zoo.Placement(tokens)


@zoo.hookimpl
def merge(parameters: Parameters) -> zoo.VirtualTokens:
    return zoo.InputTokens(parameters.left @ parameters.right)
"""
)


@pytest.fixture
def backbone():
    return examine(tiny_model("llama"))[0]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Yield a folder that this process imports from during a test."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("softprompt_zoo_")]:
        del sys.modules[name]


def lay_out(folder, distribution, source, entries):
    """Put an installed plugin into a folder as pip would."""
    module = distribution.replace("-", "_")
    info = folder / f"{distribution.replace('-', '_')}-0.3.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.3\nSummary: A test\n")
    lines = [f"[{group}]\n{name} = {module}\n" for group, name in entries.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    (info / "RECORD").write_text("")


def run(code, *folders):
    """Run code in a fresh process that has these folders on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "SOFTPROMPT_ZOO_PLUGINS"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, [Path(zoo.__file__).parents[1], *folders]))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


MODEL = """
import torch
import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
base = tiny_model("llama")
ids = torch.tensor([[5, 6, 7, 8]])
"""

USE = (
    MODEL
    + """
assert "low_rank" in zoo.list_methods()
method = zoo.get_method("Decomposed-Prompt")._loaded
print(method.name, method.aliases, method.distribution, method.version)
print(method.summary)
plain = base(input_ids=ids).logits
model = zoo.get_method("low_rank")(base, num_virtual_tokens=4, rank=2)
before = model(input_ids=ids).logits.detach()
assert before.shape == plain.shape and not torch.allclose(before, plain)
trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
assert len(trained) == 2 and trained[0].endswith("left"), trained
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
model(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
after = model(input_ids=ids).logits.detach()
assert not torch.allclose(before, after)
model.save_pretrained(FOLDER)
zoo.merge(model)
assert torch.allclose(model(input_ids=ids).logits, after, atol=1e-5)
torch.save(after, FOLDER + "/after.pt")
try:
    zoo.get_method("low_rank")(tiny_model("gpt2"), rank=0)
except ValueError as error:
    print(error)
"""
)

RELOAD = (
    MODEL
    + """
import sys
model = zoo.load(base, FOLDER)
assert torch.equal(model(input_ids=ids).logits, torch.load(FOLDER + "/after.pt"))
print(model.prompts["default"].method, model.prompts["default"].config.rank)
sys.path.remove(SITE)  # as if it had never been installed
assert "low_rank" not in zoo.list_methods()
bare = tiny_model("llama")
plain = bare(input_ids=ids).logits
try:
    zoo.load(bare, FOLDER)
except zoo.UnknownMethodError as error:
    print(error)
assert torch.equal(bare(input_ids=ids).logits, plain)
"""
)


READS_THE_TEXT = (
    MODEL
    + """
model = zoo.get_method("routed")(base, num_virtual_tokens=4, num_prompts=3)
other = torch.tensor([[9, 10, 11, 12]])
alone = [model(input_ids=row).logits for row in (ids, other)]
assert torch.allclose(model(input_ids=torch.cat([ids, other])).logits, torch.cat(alone), atol=1e-5)
model.save_pretrained(FOLDER)
assert torch.equal(zoo.load(tiny_model("llama"), FOLDER)(input_ids=ids).logits, alone[0])
print(model.prompts["default"].loaded.origin)
"""
)


def install(source, site, project, name, module):
    """Install a package of two files with pip, and remove its source."""
    source.mkdir()
    (source / "pyproject.toml").write_text(project)
    (source / name).write_text(module)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)


def test_the_plugin_that_reads_the_text_is_installed_and_used(fresh_processes, tmp_path):
    site = tmp_path / "site"
    install(tmp_path / "source", site, ROUTED_PROJECT, "softprompt_zoo_routed.py", ROUTED)
    code = f"FOLDER = {str(tmp_path / 'saved')!r}\n" + READS_THE_TEXT
    assert fresh_processes.run(code, tmp_path, site).splitlines() == ["softprompt-zoo-routed 0.1.0"]


def test_a_plugin_of_two_files_is_installed_used_saved_and_loaded_in_a_fresh_process(fresh_processes, tmp_path):
    site, saved = tmp_path / "site", tmp_path / "saved"
    install(tmp_path / "source", site, LOW_RANK_PROJECT, "softprompt_zoo_low_rank.py", LOW_RANK)
    folder = f"FOLDER = {str(saved)!r}\n"
    assert fresh_processes.run(folder + USE, tmp_path, site).splitlines() == [
        "low_rank ('decomposed_prompt',) softprompt-zoo-low-rank 0.1.0",
        "Low rank: trains embeddings of virtual tokens as a product of two thin matrices.",
        "rank is 0; expected an integer of at least 1",
    ]
    code = folder + f"SITE = {str(site)!r}\n" + RELOAD
    loaded, told = fresh_processes.run(code, tmp_path, site).splitlines()
    assert loaded == "low_rank 2"
    assert told.startswith(f"{saved} needs the method 'low_rank', which is not installed")
    assert "pip install softprompt-zoo-low-rank==0.1.0" in told


BROKEN = {
    "import": ("import no_such_module_anywhere\n" + LOW_RANK, "ModuleNotFoundError: No module named"),
    "argument": (
        THREE_HOOKS.replace("def inject(tokens:", "def inject(weather, tokens:"),
        "its hook 'inject' asks for 'weather'; it may ask for config, parameters, tokens, backbone",
    ),
    "misspelt": (
        THREE_HOOKS.replace("def inject(", "def injct("),
        "there is no hook 'injct'; did you mean 'inject'? hooks are build_virtual_tokens, inject, merge",
    ),
}
"""Problems that `reports` finds. Each plugin is the sound one with one thing changed."""

LATE = {
    "nothing": (
        LOW_RANK.replace("    return zoo.InputTokens(parameters.left", "    zoo.InputTokens(parameters.left", 1),
        "method 'nothing' (softprompt-zoo-nothing 0.3), hook 'build_virtual_tokens', returned nothing",
    ),
    "shape": (
        LOW_RANK.replace("left @ parameters.right)", "left)", 1),
        "method 'shape' (softprompt-zoo-shape 0.3), hook 'build_virtual_tokens', returned embeddings of "
        "shape (20, 4); expected (20, 32)",
    ),
}
"""Problems that only show when a prompt is made."""


def test_broken_plugins_are_told_in_one_line_each_and_the_others_keep_working(site, backbone):
    for name, (source, _) in (BROKEN | LATE | {"sound": (THREE_HOOKS, ""), "Prompt-Tuning": (LOW_RANK, "")}).items():
        source = source.replace('ALIASES = ("decomposed_prompt",)\n', "")
        lay_out(site, f"softprompt-zoo-{name.lower()}", source, {"softprompt_zoo": name})
    lay_out(site, "softprompt-zoo-around", "1 / 0\n", {"softprompt_zoo.wrappers": "around"})
    registry = Registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = {report.name: report for report in registry.reports(load=True) if report.problem}

    assert set(reports) == {*BROKEN, "Prompt-Tuning", "around"}
    for name, (_, reason) in BROKEN.items():
        origin = f"softprompt-zoo-{name} 0.3"
        assert (reports[name].kind, reports[name].origin) == ("method", origin)
        assert reports[name].problem.startswith(f"method {name!r} failed to load from {origin}: {reason}")
        with pytest.raises(zoo.PluginError, match=f"^{re.escape(reports[name].problem)}$"):
            registry.lookup(name)
    assert "of softprompt-zoo-prompt-tuning 0.3; the first keeps it" in reports["Prompt-Tuning"].problem
    assert reports["around"].kind == "wrapper"
    assert reports["around"].problem == (
        "wrapper 'around' failed to load from softprompt-zoo-around 0.3: ZeroDivisionError: division by zero"
    )
    assert not [report for report in reports.values() if "\n" in report.problem]

    for name, (_, reason) in LATE.items():
        with pytest.raises(zoo.PluginError, match=f"^{re.escape(reason)}"):
            make_prompt(registry.lookup(name), {}, backbone)
    for name in ("sound", "prompt_tuning", "prefix_tuning"):
        assert make_prompt(registry.lookup(name), {"num_virtual_tokens": 3}, backbone).num_parameters
    assert registry.lookup("prompt-tuning").distribution == "softprompt-zoo"


LIMITS = """
import os
import softprompt_zoo as zoo
for allowed in ("", "sound", "SOFTPROMPT_ZOO_OTHER", "sound, other", None):
    if allowed is None:
        del os.environ["SOFTPROMPT_ZOO_PLUGINS"]
    else:
        os.environ["SOFTPROMPT_ZOO_PLUGINS"] = allowed
    print(sorted({"sound", "other", "prompt_tuning"} & set(zoo.list_methods())))
import sys
print([name for name in ("torch", "transformers", "softprompt_zoo_sound") if name in sys.modules])
"""


def test_the_environment_variable_limits_what_loads_and_listing_imports_nothing(tmp_path):
    for name in ("sound", "other"):
        lay_out(tmp_path, f"softprompt-zoo-{name}", "print('imported')\n1 / 0\n", {"softprompt_zoo": name})
    both, every = "['other', 'prompt_tuning', 'sound']", "['prompt_tuning', 'sound']"
    assert run(LIMITS, tmp_path).splitlines() == [
        "['prompt_tuning']",
        every,
        "['other', 'prompt_tuning']",
        both,
        both,
        "[]",
    ]


EVERY = """
    if isinstance(tokens, zoo.InputTokens):
        return zoo.InputTokens(tokens.embeddings * 0.5)
    half = {}
    for name, site in tokens.sites.items():
        half[name] = zoo.SiteTokens(*(tuple(tensor * 0.5 for tensor in kind) for kind in (site.keys, site.values)))
    return zoo.LayerTokens(half)
"""
"""The end of a wrapper that also halves keys and values."""


def test_a_wrapper_acts_on_every_method_and_a_broken_one_on_none(site, backbone, monkeypatch):
    # Other installed plugins are left out: they may have tensors that a wrapper leaves alone.
    laid_out = ("softprompt-zoo-low-rank", "softprompt-zoo-halve", "softprompt-zoo-broken")
    monkeypatch.setenv("SOFTPROMPT_ZOO_PLUGINS", ",".join(laid_out))
    lay_out(site, "softprompt-zoo-low-rank", LOW_RANK, {"softprompt_zoo": "low_rank"})

    def built(registry):
        prompts = {}
        for name in registry.candidates():
            torch.manual_seed(0)
            loaded = registry.lookup(name)
            tokens = make_prompt(loaded, loaded.example_options[0], backbone).place(backbone).tokens
            prompts[name] = list(tokens.tensors().values())
        return prompts

    plain = built(Registry())
    assert set(plain) >= {"low_rank", "prompt_tuning", "prefix_tuning"}
    every = WRAPPER[: WRAPPER.index("    if isinstance")] + EVERY
    lay_out(site, "softprompt-zoo-halve", every, {"softprompt_zoo.wrappers": "halve"})
    broken = WRAPPER.replace("build_virtual_tokens()", "build_virtual_tokens(weather)")
    lay_out(site, "softprompt-zoo-broken", broken, {"softprompt_zoo.wrappers": "broken"})
    with pytest.warns(UserWarning, match="^wrapper 'broken' failed to load from softprompt-zoo-broken 0.3: ") as caught:
        wrapped = built(Registry())
    assert len(caught) == 1
    for name, tensors in plain.items():
        assert all(torch.equal(a * 0.5, b) for a, b in zip(tensors, wrapped[name], strict=True)), name


def test_the_wrapper_in_the_docs_halves_input_tokens(backbone):
    halve = types.ModuleType("softprompt_zoo_halve")
    exec(WRAPPER, vars(halve))
    zoo.register(halve)
    try:
        prompt = make_prompt(zoo.get_method("prompt_tuning")._loaded, {}, backbone)
        assert torch.equal(prompt.place(backbone).tokens.embeddings, prompt.learned.embeddings * 0.5)
    finally:
        zoo.unregister("softprompt_zoo_halve")
    assert torch.equal(prompt.place(backbone).tokens.embeddings, prompt.learned.embeddings)


def test_the_tutorial_s_project_names_the_file_it_shows():
    project = tomllib.loads(LOW_RANK_PROJECT)
    ((name, module),) = project["project"]["entry-points"]["softprompt_zoo"].items()
    assert project["project"]["name"] == f"softprompt-zoo-{name.replace('_', '-')}"
    assert module == f"softprompt_zoo_{name}" == project["tool"]["setuptools"]["py-modules"][0]


@pytest.mark.parametrize("block", [LOW_RANK, WRAPPER])
def test_the_code_of_the_docs_is_formatted(tmp_path, block):
    path = tmp_path / "block.py"
    path.write_text(block)
    command = [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--line-length", "88", str(path)]
    assert subprocess.run(command, capture_output=True).returncode == 0
