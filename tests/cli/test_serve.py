"""`serve` hands over to an installed engine, and refuses what cannot be served before it starts the engine."""

import os
from importlib import metadata

import pytest
from helpers.tiny_runs import save_tiny
from typer.testing import CliRunner

import softprompt_zoo as zoo
from softprompt_zoo.cli import app
from softprompt_zoo.cli.serve import GROUP
from softprompt_zoo.testing import tiny_model

ENGINE = """
import sys
def command(model, bank, served_as, options):
    return [sys.executable, "-c", "import sys; print(sys.argv[1:])", model, bank, served_as, *options]
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Install an engine that prints its arguments."""
    (tmp_path / "site" / "echoing-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "echoing.py").write_text(ENGINE)
    information = tmp_path / "site" / "echoing-1.0.dist-info"
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: echoing\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{GROUP}]\necho = echoing:command\n")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.fixture
def place(tmp_path):
    """A folder with a tiny model and a bank."""
    save_tiny(tmp_path / "model")
    zoo.PromptBank(tmp_path / "bank", tiny_model("llama")).close()
    return tmp_path


@pytest.fixture
def started(monkeypatch):
    """The commands that were started."""
    commands = []
    monkeypatch.setattr(os, "execvp", lambda program, command: commands.append((program, command)))
    return commands


def refusal(*words):
    result = CliRunner().invoke(app, ["serve", *map(str, words)])
    assert result.exit_code == 2, result.output
    [line] = result.stderr.strip().splitlines()
    return line


def test_the_engine_gets_model_bank_name_and_its_own_options(engine, place, started):
    words = ["serve", str(place / "model"), "--bank", str(place / "bank"), "--engine", "echo", "--", "--port", "8001"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    [(program, command)] = started
    assert program == command[0]
    assert command[3:] == [str(place / "model"), str(place / "bank"), str(place / "model"), "--port", "8001"]
    assert result.stderr.startswith("starting: ")


def test_a_missing_bank_is_refused_before_the_engine_starts(engine, place, started):
    line = refusal(place / "model", "--bank", place / "nowhere", "--engine", "echo")
    assert f"there is no bank in {place / 'nowhere'}" in line
    assert not started
    assert not (place / "nowhere").exists()


def test_an_engine_that_is_not_installed_says_what_to_install(place, started, monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda group: [])
    line = refusal(place / "model", "--bank", place / "bank")
    assert "the engine 'vllm' is not installed for serving prompts; run: pip install" in line
    assert not started


def test_an_unknown_engine_is_refused_with_those_that_are_known(engine, place, started):
    line = refusal(place / "model", "--bank", place / "bank", "--engine", "vlm")
    assert line == "--engine is 'vlm'; expected one of echo, vllm"
    assert not started
