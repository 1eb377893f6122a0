"""Runs that cannot work: refused before anything is written."""

import json

import pytest
from helpers.tiny_runs import assert_equal_weights, save_tiny, tiny_settings, train, weights
from transformers import AutoTokenizer

import softprompt_zoo as zoo
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.settings import Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "mpt", "options": {"num_tasks": 2}}, "has 2 tasks and task_ids is missing"),
        ({"options": {"num_virtual_tokens": 60}}, "virtual tokens, but the model has 64; shorten the text"),
        (
            {"handwritten": "w1 " * 60},
            r"has \d+ tokens after the hand-written prompt, more than the model has positions",
        ),
    ],
)
def test_what_does_not_work_is_refused_before_anything_is_written(place, tmp_path, changes, message):
    save_tiny(tmp_path / "model", "gpt2")
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        train(tiny_settings(place, output, model=str(tmp_path / "model"), **changes))
    assert not output.exists()
    train(tiny_settings(place, output, steps=1))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        train(tiny_settings(place, output, model=str(tmp_path / "model"), **changes), overwrite=True)
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"method": "prefx"}, "did you mean 'prefix_tuning'"),
        ({"options": {"num_virtual_tokens": 0}}, "num_virtual_tokens is 0; expected an integer of at least 1"),
        ({"options": {"size": 3}}, "unknown option 'size'"),
        ({"options": {"init": "text"}}, "init='text' needs init_text"),
        ({"max_length": 2}, r"none of the 20 training rows fits into 2 tokens; the shortest has \d+; raise"),
        ({"input_field": "question"}, "'question'"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(place, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(Base, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises((ValueError, TypeError, zoo.ZooError), match=message):
        train(tiny_settings(place, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "no place"}, "no place"),
        ({"steps": 0}, "steps is 0; expected an integer of at least 1"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0; expected a number above 0"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296; expected an integer from 0 to 4294967295"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(output="run", **changes)


def test_a_method_without_a_recipe_needs_numbers():
    with pytest.raises(ValueError, match="comes without a recipe; give --learning-rate and --steps"):
        Settings(output="run").with_recipe("mixture", None)
    assert Settings(output="run", learning_rate=0.1, steps=3).with_recipe("mixture", None).batch_size == 8


def test_encoders_are_refused_and_told_what_works(place, tmp_path):
    save_tiny(tmp_path / "bert", "bert")
    with pytest.raises(zoo.UnsupportedError, match="does not write text; the commands take causal language models"):
        train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "bert")))


def test_a_foreign_tokenizer_is_refused(place, tmp_path):
    save_tiny(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    config["model"]["vocab"] = {word: index * 10 for word, index in config["model"]["vocab"].items()}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(zoo.UnsupportedError, match=r"gives the id \d+, but the model has 101 embeddings"):
        train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "model")))


def test_a_token_that_only_validation_has_is_refused_too(place, tmp_path):
    save_tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens([f"x{number}" for number in range(60)])
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text('{"input": "w1", "target": "x59"}\n')
    for changes in ({"validation": str(data)}, {"handwritten": "x59"}):
        with pytest.raises(zoo.UnsupportedError, match="gives the id 124, but the model has 101 embeddings"):
            train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "model"), **changes))


def test_padding_that_the_model_does_not_know_is_replaced(place, tmp_path):
    save_tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens([f"x{number}" for number in range(60)])
    tokenizer.add_special_tokens({"pad_token": "[padding]"})
    assert tokenizer.pad_token_id > 101
    tokenizer.save_pretrained(tmp_path / "model")
    train(tiny_settings(place, tmp_path / "other", model=str(tmp_path / "model")))
    train(tiny_settings(place, tmp_path / "run"))
    assert_equal_weights(weights(tmp_path / "other"), weights(tmp_path / "run"))


def test_a_text_without_tokens_is_refused(place, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"input": "w1", "target": "w2"}\n{"input": "\\u200b", "target": "w2"}\n')
    save_tiny(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    config["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"input '.u200b' has no tokens in the template '\{input\}.n'"):
        train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "model"), data=str(data)))
