"""`train`: its table, what to do next, and what it refuses."""

import json
import shlex
import shutil

import pytest
from helpers.commands import invoke, refusal

import softprompt_zoo as zoo
from softprompt_zoo.cli import app
from softprompt_zoo.cli.configured import parse_option, unescape


def test_train_prints_the_table_and_what_to_do_next(place):
    result = invoke(
        *("train", place / "model", "prompt", "--data", place / "data.jsonl", "--output", place / "other"),
        *("--steps", 1, "--metric-rows", 1, "--handwritten", "w1 w2"),
    )
    assert result.exit_code == 0, result.output
    for part in ("base model", "hand-written prompt", "trained prompt", "ROUGE-L", "loss_curve.png", "or in Python"):
        assert part in result.stdout


def test_paths_and_texts_are_shown_as_they_are(place, tmp_path):
    model = tmp_path / "a[b]$x_{$" / "[" / "c]$x_{$"  # markup and math if they were read as such
    shutil.copytree(place / "model", model)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"input": ":warning: [b]w1[/b]", "target": "w2 :smile:"}) + "\n")
    output = tmp_path / "[/red]"
    words = ("--data", data, "--validation", data, "--output", output, "--steps", 1)
    result = invoke("train", model, "prefix", *words)
    assert result.exit_code == 0, result.output
    for line in (f"loading {model} in", " :warning: [b]w1[/b]\n", " w2 :smile:\n", "':warning: [b]w1[/b]'\n"):
        assert line in result.stdout
    assert (output / "loss_curve.png").is_file()


def test_the_command_that_is_shown_works(place, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"input": "- w1", "target": "w2"}\n')
    words = ("--data", data, "--validation", data, "--output", tmp_path / "run", "--steps", 1)
    shown = invoke("train", place / "model", "prefix", *words).stdout.split("use it:\n")[1].splitlines()[0]
    assert invoke(*shlex.split(shown)[1:]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--option", "three"], "--option is 'three'; expected name=value"),
        (["--option", "num_virtual_tokens=many"], "num_virtual_tokens is 'many'"),
        (["--option", "length=3"], "unknown option 'length'"),
        (["--option", "tokenizer=other"], "a run uses the model's own; leave it out"),
        (["--template", "no place"], "'no place'"),
        (["--steps", "0"], "steps is 0; expected an integer of at least 1"),
        (["--dtype", "int8"], "dtype is 'int8'; expected one of"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--resume", "--steps", "3"], "--steps was given with --resume"),
        (["--resume"], "holds no training run to resume"),
    ],
)
def test_train_refuses_in_one_line(place, tmp_path, words, message):
    data = [] if "--resume" in words else ["--data", place / "data.jsonl"]
    model = [] if "--resume" in words else [place / "model", "prefix"]
    assert message in refusal("train", *model, *data, "--output", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_help_says_what_holds_if_an_option_is_not_given():
    import typer

    commands = typer.main.get_command(app).commands
    for command, options in {
        "train": ("dtype", "steps", "evaluate_every", "save_every"),
        "evaluate": ("dtype",),
    }.items():
        texts = {parameter.name: parameter.help for parameter in commands[command].params}
        assert all("not given" in texts[option] for option in options)


def test_train_refuses_models_that_are_not_there(place, tmp_path):
    refusal("train", tmp_path / "nowhere", "--data", place / "data.jsonl", "--output", tmp_path / "run")


def test_train_refuses_models_that_are_not_whole(place, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    words = ("train", model, "--data", place / "data.jsonl", "--output", tmp_path / "run")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "are damaged" in refusal(*words)
    for file in model.glob("token*"):
        file.unlink()
    assert "cannot be loaded; save one into its folder" in refusal(*words)
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback():
    result = invoke("show", "prefx", "--debug")
    assert isinstance(result.exception, zoo.UnknownMethodError)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(place, tmp_path, monkeypatch):
    from softprompt_zoo.training import run

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run._Run, "_measure_untrained", interrupt)
    result = invoke("train", place / "model", "--data", place / "data.jsonl", "--output", tmp_path / "run")
    assert result.exit_code == 130
    assert "stopped" in result.stderr
    assert "softprompt-zoo train --resume --output" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num-virtual-tokens=3", ("num_virtual_tokens", 3)),
        ("init_text=a b", ("init_text", "a b")),
        ('sites=["encoder"]', ("sites", ["encoder"])),
        ("init_text=a=b", ("init_text", "a=b")),
        ("reparameterization=null", ("reparameterization", None)),
    ],
)
def test_options_are_json_or_text(text, expected):
    assert parse_option(text) == expected


def test_templates_may_spell_new_lines():
    assert unescape(r"{input}\n\t") == "{input}\n\t"
