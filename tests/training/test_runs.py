"""Training runs: what they leave, and where."""

import dataclasses
import json
import re
import shlex
import types

import pytest
from helpers.tiny_runs import assert_equal_weights, save_tiny, tiny_settings, train, weights
from transformers import AutoModelForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.training.settings import Settings


def test_a_run_leaves_a_prompt_a_record_and_a_picture(whole, place):
    output, printed = whole
    record = json.loads((output / "training.json").read_text())
    assert record["status"] == "finished"
    assert [*record["results"]] == ["base model", "hand-written prompt", "trained prompt"]
    assert record["results"]["hand-written prompt"]["prompt_tokens"] == 2
    assert record["results"]["trained prompt"]["prompt_tokens"] == 3
    assert record["data"]["train"]["rows"] == 20
    assert len(record["data"]["validation"]["sha256"]) == 64
    assert record["settings"]["learning_rate"] == zoo.get_method("prefix").recipe.learning_rate
    assert {"python", "torch", "transformers", "softprompt-zoo"} <= record["versions"].keys()
    assert sum("loss" in entry for entry in record["history"]) == 8
    assert sum("eval_loss" in entry for entry in record["history"]) == 3
    assert (output / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    for line in ("step 3 of 8: loss", "loss curve:", "softprompt-zoo generate", "PeftModel.from_pretrained"):
        assert line in printed
    assert re.search(r"trained prompt +│ +3 │ +\d\.\d{3} │ +\d\.\d{3}", printed)
    model = zoo.load(AutoModelForCausalLM.from_pretrained(place / "model"), output)
    assert [*model.prompts] == ["default"]


def test_training_lowers_the_loss(place, tmp_path):
    train(tiny_settings(place, tmp_path / "run", learning_rate=0.1, steps=30, evaluate_every=30, save_every=30))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    losses = {name: score["loss"] for name, score in record["results"].items()}
    assert losses["trained prompt"] < losses["base model"]


def test_the_recorded_command_repeats_the_run(whole, place, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from softprompt_zoo.cli import app

    record = json.loads((whole[0] / "training.json").read_text())
    words = [word.replace(str(whole[0]), str(tmp_path / "again")) for word in shlex.split(record["command"])[1:]]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert_equal_weights(weights(tmp_path / "again"), weights(whole[0]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(zoo.Options):
    factor: float = 1.0


@zoo.hookimpl(wrapper=True)
def inject(wrapper_config):
    placement = yield
    return dataclasses.replace(placement, weight=wrapper_config.factor)


def test_wrappers_are_an_option_of_a_run(place, tmp_path):
    zoo.register(types.SimpleNamespace(Config=Scale, inject=inject), "scale")
    try:
        options = {"num_virtual_tokens": 3, "wrappers": {"scale": {"factor": 2.0}}}
        settings = tiny_settings(place, tmp_path / "run", options=options, steps=1, evaluate_every=1, save_every=1)
        assert "wrappers=" in settings.command()
        train(settings)
        model = zoo.load(AutoModelForCausalLM.from_pretrained(place / "model"), tmp_path / "run")
        prompt = model.prompts["default"]
        assert (prompt.wrappers, prompt.place(model.prompts.backbone).weight) == ({"scale": Scale(factor=2.0)}, 2.0)
    finally:
        zoo.unregister("scale")


def test_the_recorded_command_keeps_texts_that_look_like_json():
    from softprompt_zoo.cli.configured import parse_option

    options = {"init_text": "5", "labels": ["a", "5"], "dropout": 0.1, "init": "text", "template": "null"}
    words = shlex.split(Settings(output="run", options=options).command())
    assert dict(parse_option(word) for word in words if "=" in word) == options


def test_output_folders(whole, place, tmp_path):
    with pytest.raises(zoo.OutputError, match="holds a training run already; continue it with --resume"):
        train(tiny_settings(place, whole[0]))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(zoo.OutputError, match="holds files that are not a training run's"):
            train(tiny_settings(place, foreign), **options)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    for file in (foreign / "thesis.txt", foreign / "thesis.txt" / "run"):
        with pytest.raises(zoo.OutputError, match="is a file"):
            train(tiny_settings(place, file))


def test_overwrite_removes_the_run_and_nothing_else(place, tmp_path):
    output = tmp_path / "run"
    train(tiny_settings(place, output, steps=2))
    (output / "notes.txt").write_text("mine")
    train(tiny_settings(place, output, steps=1, method="prompt", options={}), overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]
    assert json.loads((output / "training.json").read_text())["settings"]["method"] == "prompt_tuning"


def test_answers_end_where_the_models_positions_do(place, tmp_path):
    save_tiny(tmp_path / "model", "gpt2")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"input": "w1 " * 42, "target": "w2"}) + "\n")
    options = {"num_virtual_tokens": 20}  # only 42 tokens of input and 2 of target fit after them
    files = {"data": str(data), "validation": str(data)}
    train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "model"), options=options, steps=1, **files))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["status"] == "finished"


def test_encoder_decoders_train(place, tmp_path):
    save_tiny(tmp_path / "t5", "t5")
    printed = train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "t5"), steps=3))
    assert "AutoModelForSeq2SeqLM" in printed
    assert "zoo.load" in printed  # PEFT holds only the decoder's site


def test_options_that_need_a_tokenizer_get_the_models(place, tmp_path):
    options = {"num_virtual_tokens": 3, "init": "text", "init_text": "w1 w2 w3"}
    train(tiny_settings(place, tmp_path / "run", options=options, steps=1))
