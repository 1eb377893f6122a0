"""Input that once gave a traceback, an empty line, or a command that never ended: each is refused in one line."""

import errno
import os
import sys
import textwrap
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import softprompt_zoo as zoo
from softprompt_zoo import cli
from softprompt_zoo.cli.command import command
from softprompt_zoo.errors import DataError
from softprompt_zoo.examples import read_examples
from softprompt_zoo.files.writing import write_json
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.training import settings
from softprompt_zoo.training.report import short_path


def refusal(*words):
    """Return the one line with which a command is refused."""
    result = CliRunner().invoke(cli.app, [*words])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    [line] = result.stderr.strip().splitlines()
    return line


def check_is_refused(folder, words, message):
    assert message in refusal("train", "--output", str(folder / "run"), *words)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning-rate", "1e308"], "learning_rate is 1e+308; expected a number above 0 and at most 1e+06"),
        (["--steps", "9" * 20], f"steps is {'9' * 20}; expected an integer of at most 1000000000"),
        (["--option", "x=" + "[" * 100_000], "--option x is JSON that is nested too deeply ([[[["),
        (["--option", "self=1"], "unknown option 'self'"),
    ],
)
def test_strange_numbers_and_options_are_refused(words, message, tmp_path):
    check_is_refused(tmp_path, words, message)


def test_a_number_without_bounds_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "LARGEST_RATE", float("inf"))
    monkeypatch.setattr(settings, "MOST", 10**30)
    with pytest.raises(AssertionError):  # an error comes later, and about something else
        check_is_refused(tmp_path, ["--steps", "9" * 20, "--option", "self=1"], "expected an integer of at most")


def test_an_option_may_be_called_as_python_calls_the_object():
    for call in (zoo.get_method("prefix").configure, lambda **options: zoo.get_method("prefix")(None, **options)):
        with pytest.raises(TypeError, match="unknown option 'self'"):
            call(**{"self": 1})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are made on POSIX")
def test_a_pipe_is_no_data_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe or a device; name a"):
        read_examples(path)


def test_a_long_cell_is_told_as_that(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f'input,target\na,b\n"{"x" * 140_000}",b\n')
    with pytest.raises(DataError, match=r"rows\.csv:3: has a cell of more than 131,072 characters"):
        read_examples(path)
    path.write_text('input,target\na,b\n"x\n')
    with pytest.raises(DataError, match="a quoted cell must end with a double quote"):
        read_examples(path)


def shown_without_columns(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "0")
        patch.setattr(sys, "argv", ["softprompt-zoo", "show", "prefx"])
        with pytest.raises(SystemExit):
            run()
        return capsys.readouterr().err


def test_an_error_is_shown_where_the_terminal_has_no_width(monkeypatch, capsys):
    assert "did you mean 'prefix_tuning'" in shown_without_columns(cli.main, monkeypatch, capsys)
    assert "did you mean" not in shown_without_columns(cli.app, monkeypatch, capsys), "the check shows nothing"


def test_a_full_disk_is_told_with_the_place_and_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    app = typer.Typer()
    app.command()(command(lambda: write_json(tmp_path / "a.json", {})))
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "the disk is full" in result.stderr
    assert str(tmp_path / "a.json") in result.stderr.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_begins_like_an_option_is_shown_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(Path("-x")) == short_path(tmp_path / "-x") == os.path.join(".", "-x")
    assert short_path(Path("x")) == "x"


def test_plugins_are_checked_where_pytest_is_not_installed(fresh_processes, tmp_path):
    code = """
        import sys
        sys.modules["pytest"] = None
        import softprompt_zoo.testing
        try:
            softprompt_zoo.testing.conformance_suite
        except ImportError:
            print("no pytest")
        from softprompt_zoo.cli import app
        app(["plugins", "--check"])
    """
    told = fresh_processes.run(textwrap.dedent(code), tmp_path)
    assert told.startswith("no pytest\n")
    assert "prefix_tuning" in told


def test_the_kit_has_what_it_lists():
    for name in zoo.testing.__all__:
        assert getattr(zoo.testing, name) is not None
    assert zoo.testing.tiny_model is tiny_model
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zoo.testing.nothing
