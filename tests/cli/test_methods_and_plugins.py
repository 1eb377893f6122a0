"""`methods`, `show`, and `plugins check`: they import nothing heavy and say which plugin is at fault."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from helpers.commands import invoke, refusal

import softprompt_zoo as zoo
from softprompt_zoo import MethodConfig

LONG = "softprompt-zoo-context-aware-prompts"
HEAVY = ("torch", "transformers", "numpy", "matplotlib", "datasets")


@pytest.fixture
def registered():
    """Register methods for one test."""
    names = []

    def register(plugin, name):
        names.append(name)
        return zoo.register(plugin, name)

    yield register
    for name in names:
        zoo.unregister(name)


def test_light_commands_import_nothing_heavy():
    commands = [["--help"], ["methods"], ["methods", "--json"], ["plugins"], ["train", "--help"]]
    code = (
        "import sys; from softprompt_zoo.cli import app\n"
        f"for words in {commands}:\n"
        "    try: app(words)\n"
        "    except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip().splitlines()[-1] == "[]"


def _cpu_seconds(code):
    """Return the CPU time of some code: the best of three, because other processes disturb even CPU time."""
    timed = (
        f"import sys, time\nbegan = time.process_time()\n{code}\nprint(time.process_time() - began, file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True) for _ in range(3)]
    return min(float(run.stderr.splitlines()[-1]) for run in runs)


def test_the_package_imports_quickly():
    assert _cpu_seconds("import softprompt_zoo") < 0.15


def test_methods_is_quick():
    assert _cpu_seconds("from softprompt_zoo.cli import app\ntry: app(['methods'])\nexcept SystemExit: pass") < 0.6


def test_methods_lists_names_aliases_summaries_and_distributions():
    rows = {row["name"]: row for row in json.loads(invoke("methods", "--json").stdout)}
    assert rows["prefix_tuning"]["aliases"] == ["prefix"]
    assert rows["prefix_tuning"]["summary"].startswith("Prefix tuning:")
    assert rows["prefix_tuning"]["distribution"].startswith("softprompt-zoo")
    assert "prefix_tuning" in invoke("methods").stdout


def test_a_narrow_terminal_cuts_no_name():
    for command, names in (("methods", ["multitask_prompt_tuning", "prefix_tuning"]), ("plugins", zoo.list_methods())):
        cells = [
            line.split("│")[1].strip() for line in invoke(command, env={"COLUMNS": "60"}).stdout.splitlines()[3:-1]
        ]
        assert set(names) <= set(cells)


def test_a_narrow_terminal_cuts_no_distribution(registered, monkeypatch):
    from softprompt_zoo.registry.registry import registry

    registered(_method(), "bare")
    candidate = registry.candidates()["bare"]
    monkeypatch.setattr(registry, "candidates", lambda: {"bare": dataclasses.replace(candidate, distribution=LONG)})
    for width in ("80", "60"):
        lines = invoke("methods", env={"COLUMNS": width}).stdout.splitlines()[3:-1]
        assert LONG in "".join(line.split("│")[4].strip() for line in lines)


def test_a_reader_that_has_enough_is_no_error():
    words = [sys.executable, "-m", "softprompt_zoo", "methods", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_plugins_check_passes_what_is_built_in():
    result = invoke("plugins", "--check", env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert not re.search(r"softprompt-zoo \d.*hooks not run", result.output)
    rows = json.loads(invoke("plugins", "--check", "--json").stdout)
    assert {row["problem"] for row in rows if row["origin"].startswith("softprompt-zoo ")} == {None}


def _method(**changes):
    """Build a method with the hooks of prompt tuning, some of them changed."""
    from softprompt_zoo.methods import prompt_tuning as page

    names = ("Config", "Parameters", "build_virtual_tokens")
    return type("Page", (), {**{name: getattr(page, name) for name in names}, **changes})


def test_plugins_check_reports_hooks_that_return_nothing_or_wrong_shapes(registered):
    import torch

    @zoo.hookimpl
    def merge():
        """Return nothing."""

    @zoo.hookimpl
    def build_virtual_tokens():
        return zoo.InputTokens(torch.zeros(3, 5))

    registered(_method(merge=merge), "silent")
    registered(_method(build_virtual_tokens=build_virtual_tokens), "crooked")
    result = invoke("plugins", "--check")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert any(re.match(r"silent \(zoo\.register\): .*'merge'.* returned nothing", line) for line in lines)
    assert any(re.match(r"crooked \(zoo\.register\): .*'build_virtual_tokens'", line) for line in lines)
    assert invoke("plugins").exit_code == 0


def test_plugins_check_says_which_hooks_it_could_not_run(registered):
    def refuse(self):
        raise ValueError("examples is None; expected texts")

    registered(_method(Config=type("Config", (MethodConfig,), {"__post_init__": refuse})), "picky")
    result = invoke("plugins", "--check", env={"COLUMNS": "200"})
    assert "loads; hooks not run: examples is None" in result.stdout


def test_plugins_check_names_the_hook_that_raises_and_goes_on(registered):
    @zoo.hookimpl
    def merge():
        raise RuntimeError("boom")

    def stumble(self):
        raise AttributeError("no words")

    @zoo.hookimpl(wrapper=True)
    def inject():
        raise KeyError("wrapped")
        yield

    config = type("Config", (MethodConfig,), {"__post_init__": stumble})
    registered(_method(Config=config), "stumbles")
    registered(_method(merge=merge), "raises")
    lines = invoke("plugins", "--check").stdout.splitlines()
    assert "stumbles (zoo.register): AttributeError: no words" in lines
    assert "raises (zoo.register): RuntimeError: boom; raised by method 'raises' (zoo.register), hook 'merge'" in lines
    registered(type("Around", (), {"inject": inject}), "around")
    told = [line for line in invoke("plugins", "--check").stdout.splitlines() if ": " in line]
    assert (
        "around (zoo.register): KeyError: 'wrapped'; raised by wrapper 'around' (zoo.register), hook 'inject'" in told
    )
    assert {line.split()[0] for line in told} == {"around", "raises", "stumbles"}


def test_show_prints_page_options_and_recipe():
    text = invoke("show", "PREFIX-tuning").stdout
    assert "Source: Li and Liang" in text
    assert "  num_virtual_tokens: int = 20\n      Virtual tokens of the prompt, at least 1; 0" in text
    assert '  reparameterization: str | None = None\n      `"mlp"` computes the prefix' in text
    assert f"  learning_rate: {zoo.get_method('prefix').recipe.learning_rate}" in text
    assert "did you mean 'prefix_tuning'?" in refusal("show", "prefx_tuning")


def test_show_says_that_there_is_no_recipe(registered):
    registered(_method(), "bare")
    assert "none; give train a --learning-rate and --steps" in invoke("show", "bare").stdout


def exports(method):
    lines = invoke("show", method).stdout.split("\nExports:\n")[1].splitlines()
    answers = [line.strip().split(": ", 1) for line in lines[1:]]
    return lines[0], {form: answer for forms, answer in answers for form in forms.split(", ")}


def test_show_says_what_prompts_can_be_exported_to_before_they_are_trained(registered):
    @zoo.hookimpl
    def merge():
        raise zoo.UnsupportedError("it has no merged form")

    tried, found = exports("prefix")
    assert tried.startswith("  tried on a tiny gpt2 with num_virtual_tokens=5;")
    assert (found["PEFT"], found["kv"], found["merge"]) == ("PREFIX_TUNING", "yes", "yes")
    assert found["vocabulary"].startswith("no; prompt 'default' has keys and values, which are not embeddings")
    assert set(exports("prompt_tuning")[1].values()) == {"PROMPT_TUNING", "yes"}
    registered(_method(merge=merge), "kept")
    assert set(exports("kept")[1].values()) == {"no; it has no merged form"}


def test_show_says_why_nothing_was_tried(registered):
    @zoo.hookimpl
    def build_virtual_tokens():
        raise zoo.UnsupportedError("nowhere")

    registered(_method(build_virtual_tokens=build_virtual_tokens), "nowhere")
    assert exports("nowhere") == ("  not tried: nowhere", {})
