"""Training runs on tiny models: what they write, and that nothing which cuts them off harms it."""

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.training import folder as folders
from softprompt_zoo.training import run as runs
from softprompt_zoo.training import trainer as trainers
from softprompt_zoo.training.data import Collator, Row, Tokenised, pad
from softprompt_zoo.training.metrics import rouge_l
from softprompt_zoo.training.settings import Settings

WORDS = [f"w{number}" for number in range(60)]


def save_tiny(folder, architecture="llama"):
    """Save a tiny model and a tokenizer of words."""
    model = tiny_model(architecture)
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", ":", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def write_rows(path, count, seed=0):
    """Write rows whose target repeats the input's first words."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(3, 8))
        rows.append({"input": " ".join(words), "target": " ".join(words[:3])})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and data."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    write_rows(folder / "train.jsonl", 20)
    write_rows(folder / "validation.jsonl", 6, seed=1)
    return folder


def tiny_settings(place, output, **changes):
    fields = {
        "model": str(place / "model"),
        "output": str(output),
        "data": str(place / "train.jsonl"),
        "validation": str(place / "validation.jsonl"),
        "options": {"num_virtual_tokens": 3, "dropout": 0.1},
        "steps": 8,
        "batch_size": 4,
        "save_every": 2,
        "evaluate_every": 3,
        "metric_rows": 2,
        "dtype": "float32",
        "handwritten": "w1 w2",
    }
    return Settings(**{**fields, **changes})


def train(settings, **options):
    """Train quietly and return what was printed."""
    console = Console(file=io.StringIO(), width=200)
    runs.train(settings, console, **options)
    return console.file.getvalue()


def resume(folder):
    console = Console(file=io.StringIO(), width=200)
    runs.resume(folder, console)
    return console.file.getvalue()


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def whole(place):
    """A run that nothing interrupted, and what it printed."""
    output = place / "whole"
    return output, train(tiny_settings(place, output))


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


def test_the_recorded_command_keeps_texts_that_look_like_json():
    from softprompt_zoo.cli.train import parse_option

    options = {"init_text": "5", "labels": ["a", "5"], "dropout": 0.1, "init": "text", "template": "null"}
    words = shlex.split(Settings(output="run", options=options).command())
    assert dict(parse_option(word) for word in words if "=" in word) == options


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


@pytest.fixture
def at_step(monkeypatch):
    """Make the next run do something after a step."""

    def arrange(step, action):
        def with_callback(*arguments):
            *others, callbacks = arguments
            return made(*others, [At(step, action), *callbacks])

        made = trainers.make_trainer
        monkeypatch.setattr(trainers, "make_trainer", with_callback)
        return lambda: monkeypatch.setattr(trainers, "make_trainer", made)

    return arrange


@pytest.mark.parametrize("step", [1, 5, 8])
def test_ctrl_c_saves_and_resuming_gives_the_weights_of_an_uninterrupted_run(whole, place, tmp_path, at_step, step):
    output, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    undo = at_step(step, lambda: signal.raise_signal(signal.SIGINT))
    expected = rf"saved after step {step} of 8; to go on, run: softprompt-zoo train --resume --output .*run"
    with pytest.raises(runs.StoppedError, match=expected):
        train(tiny_settings(place, output))
    undo()
    assert signal.getsignal(signal.SIGINT) is handler
    resume(output)
    assert_equal_weights(weights(output), weights(whole[0]))
    before, after = (json.loads((folder / "training.json").read_text()) for folder in (whole[0], output))
    assert before["results"] == after["results"]
    losses = [[(e["step"], e["loss"]) for e in record["history"] if "loss" in e] for record in (before, after)]
    assert losses[0] == losses[1]


def test_a_start_from_a_folder_is_found_from_elsewhere(place, tmp_path, at_step, monkeypatch):
    zoo.get_method("prompt")(tiny_model("llama"), num_virtual_tokens=3).save_pretrained(tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    undo = at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    options = {"num_virtual_tokens": 3, "init": "start"}
    with pytest.raises(runs.StoppedError):
        train(tiny_settings(place, tmp_path / "run", method="prompt", options=options))
    undo()
    monkeypatch.chdir(place)
    resume(tmp_path / "run")


def test_a_second_ctrl_c_stops_at_once_and_the_checkpoint_before_is_used(whole, place, tmp_path, at_step):
    def interrupt():
        raise KeyboardInterrupt

    output = tmp_path / "run"
    undo = at_step(5, interrupt)
    with pytest.raises(runs.StoppedError, match="saved after step 4 of 8"):
        train(tiny_settings(place, output))
    undo()
    assert "going on after step 4" in resume(output)
    assert_equal_weights(weights(output), weights(whole[0]))


@pytest.mark.parametrize(
    "broken", ["no state", "half a state", "no optimizer", "half an optimizer", "half the weights"]
)
def test_a_half_written_checkpoint_is_skipped(whole, place, tmp_path, at_step, broken):
    output = tmp_path / "run"
    undo = at_step(6, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(runs.StoppedError):
        train(tiny_settings(place, output))
    undo()
    action, name = broken.split(" ", 1)
    file = (
        output
        / "checkpoint-6"
        / {"state": "trainer_state.json", "optimizer": "optimizer.pt"}.get(name.split()[-1], "model.safetensors")
    )
    if action == "no":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert folders.latest_checkpoint(output).name == "checkpoint-4"
    assert "going on after step 4" in resume(output)
    assert_equal_weights(weights(output), weights(whole[0]))


def test_without_any_whole_checkpoint_the_run_begins_again(whole, place, tmp_path, at_step):
    output = tmp_path / "run"
    undo = at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(runs.StoppedError):
        train(tiny_settings(place, output))
    undo()
    (output / "checkpoint-1" / "trainer_state.json").unlink()
    resume(output)
    assert_equal_weights(weights(output), weights(whole[0]))


def test_what_cannot_be_resumed(whole, place, tmp_path, at_step):
    with pytest.raises(folders.OutputError, match="is finished; train anew with --overwrite"):
        resume(whole[0])
    with pytest.raises(folders.OutputError, match="holds no training run to resume"):
        resume(tmp_path)
    data = write_rows(tmp_path / "data.jsonl", 12)
    at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(runs.StoppedError):
        train(tiny_settings(place, tmp_path / "run", data=str(data)))
    write_rows(data, 12, seed=5)
    with pytest.raises(folders.OutputError, match=r"data\.jsonl has changed since the run"):
        resume(tmp_path / "run")


def test_another_model_is_not_gone_on_with(place, tmp_path, at_step):
    model = tmp_path / "model"
    save_tiny(model)
    undo = at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(runs.StoppedError):
        train(tiny_settings(place, tmp_path / "run", model=str(model)))
    undo()
    save_tiny(model, "gpt2")
    with pytest.raises(zoo.BackboneMismatchError, match=r"the run in .*run was made for a model with layers"):
        resume(tmp_path / "run")
    other = tiny_model("llama")
    with torch.no_grad():
        other.get_input_embeddings().weight.normal_()
    save_tiny(model)
    other.save_pretrained(model)
    with pytest.raises(zoo.BackboneMismatchError, match=r"the run in .*run was made for a model with other weights"):
        resume(tmp_path / "run")
    save_tiny(model)
    resume(tmp_path / "run")


def test_output_folders(whole, place, tmp_path):
    with pytest.raises(folders.OutputError, match="holds a training run already; go on with it with --resume"):
        train(tiny_settings(place, whole[0]))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(folders.OutputError, match="holds files that are not a training run's"):
            train(tiny_settings(place, foreign), **options)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    for file in (foreign / "thesis.txt", foreign / "thesis.txt" / "run"):
        with pytest.raises(folders.OutputError, match="is a file"):
            train(tiny_settings(place, file))


def test_overwrite_removes_the_run_and_nothing_else(place, tmp_path):
    output = tmp_path / "run"
    train(tiny_settings(place, output, steps=2))
    (output / "notes.txt").write_text("mine")
    train(tiny_settings(place, output, steps=1, method="prompt", options={}), overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]
    assert json.loads((output / "training.json").read_text())["settings"]["method"] == "prompt_tuning"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "mpt", "options": {"num_tasks": 2}}, "has 2 tasks and task_ids is missing"),
        ({"options": {"num_virtual_tokens": 60}}, "virtual tokens, but the model has 64; shorten the text"),
        (
            {"handwritten": "w1 " * 60},
            r"has \d+ tokens behind the hand-written prompt, more than the model has positions",
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


def test_answers_end_where_the_models_positions_do(place, tmp_path):
    save_tiny(tmp_path / "model", "gpt2")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"input": "w1 " * 42, "target": "w2"}) + "\n")
    options = {"num_virtual_tokens": 20}  # 42 tokens of input and 2 of target are all that go behind them
    files = {"data": str(data), "validation": str(data)}
    train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "model"), options=options, steps=1, **files))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["status"] == "finished"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"method": "prefx"}, "did you mean 'prefix_tuning'"),
        ({"options": {"num_virtual_tokens": 0}}, "num_virtual_tokens is 0; expected an integer of at least 1"),
        ({"options": {"size": 3}}, "unknown option 'size'"),
        ({"options": {"init": "text"}}, "init='text' needs init_text"),
        ({"max_length": 2}, r"none of the 20 training rows fits into 2 tokens, the shortest has \d+; raise"),
        ({"input_field": "question"}, "'question'"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(place, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(runs.Base, "load", lambda *_: pytest.fail("the model was loaded"))
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
    with pytest.raises(zoo.UnsupportedError, match=r"the tokenizer gives the id \d+, the model has 101 embeddings"):
        train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "model")))


def test_a_token_that_only_validation_has_is_refused_too(place, tmp_path):
    save_tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens([f"x{number}" for number in range(60)])
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text('{"input": "w1", "target": "x59"}\n')
    for changes in ({"validation": str(data)}, {"handwritten": "x59"}):
        with pytest.raises(zoo.UnsupportedError, match="the tokenizer gives the id 124, the model has 101 embeddings"):
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


def test_encoder_decoders_train(place, tmp_path):
    save_tiny(tmp_path / "t5", "t5")
    printed = train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "t5"), steps=3))
    assert "AutoModelForSeq2SeqLM" in printed
    assert "zoo.load" in printed  # PEFT holds the decoder's site only


def test_a_text_without_tokens_is_refused(place, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"input": "w1", "target": "w2"}\n{"input": "\\u200b", "target": "w2"}\n')
    save_tiny(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    config["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"input '.u200b' has no tokens in the template '\{input\}.n'"):
        train(tiny_settings(place, tmp_path / "run", model=str(tmp_path / "model"), data=str(data)))


def test_a_tenth_is_held_out(place, tmp_path):
    train(tiny_settings(place, tmp_path / "run", validation=None, steps=1))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert [*record["data"]] == ["train"]
    assert len(record["results"]["base model"]["answers"]) == 2
    data = write_rows(tmp_path / "one.jsonl", 1)
    with pytest.raises(ValueError, match="has one row, which leaves none to validate on"):
        train(tiny_settings(place, tmp_path / "other", data=str(data), validation=None))


def test_options_that_need_a_tokenizer_get_the_models(place, tmp_path):
    options = {"num_virtual_tokens": 3, "init": "text", "init_text": "w1 w2 w3"}
    train(tiny_settings(place, tmp_path / "run", options=options, steps=1))


def test_long_rows_are_left_out_and_counted(place, tmp_path):
    printed = train(tiny_settings(place, tmp_path / "run", max_length=10, steps=1))
    assert re.search(r"left out \d+ rows of more than --max-length 10", printed)


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("police killed the gunman", ["police killed the gunman"], 1.0),
        # Lin 2004, section 3.1: three and two of four words in order.
        ("police kill the gunman", ["police killed the gunman"], 0.75),
        ("the gunman kill police", ["police killed the gunman"], 0.5),
        ("the gunman police killed", ["police killed the gunman"], 0.5),
        ("testing one two", ["testing"], 0.5),
        ("", ["something"], 0.0),
        ("nothing shared", ["at all"], 0.0),
        ("A b-c", ["x", "a B c"], 1.0),
    ],
)
def test_rouge_l_has_known_values(text, references, expected):
    assert rouge_l(text, references) == pytest.approx(expected)


def test_rouge_l_is_that_of_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(0)
    for _ in range(100):
        first, second = (" ".join(draw.choices(["a_b", "C", "d.", "e-f", "7"], k=draw.randint(1, 9))) for _ in "ab")
        assert rouge_l(first, [second]) == pytest.approx(scorer.score(second, first)["rougeL"].fmeasure)


def test_only_targets_have_labels():
    rows = [Row([5, 6, 7], [8, 2]), Row([5], [9, 2])]
    batch = Collator(0, is_encoder_decoder=False)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2], [5, 9, 2, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 2], [-100, 9, 2, -100, -100]]
    split = Collator(0, is_encoder_decoder=True)(rows)
    assert split["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert split["labels"].tolist() == [[8, 2], [9, 2]]
    assert pad([[5, 6], [7]], 0, left=True)["input_ids"].tolist() == [[5, 6], [0, 7]]


def test_an_instruction_stands_in_front_as_it_is(place):
    plain = Tokenised(None, False, "{input}\n")
    assert plain.with_instruction("keep {this}").template == "keep {{this}}\n\n{input}\n"


SCRIPT = """
import os, sys, torch
torch.set_num_threads(1)
from rich.console import Console
from softprompt_zoo.training.run import resume, train
from softprompt_zoo.training.settings import Settings
import json
settings = Settings(**json.loads(sys.argv[1]))
import pathlib, transformers
# Imports take seconds; each life forks from here, so that kills land in the run itself.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            folder = pathlib.Path(settings.output)
            console = Console(file=open(os.devnull, "w"))
            if line.strip() == "resume":
                resume(folder, console)
            else:
                train(settings, console, overwrite=True)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print("ended", status, flush=True)
"""


class Lives:
    """Processes that train until they are done or killed."""

    def __init__(self, settings):
        words = [sys.executable, "-c", SCRIPT, json.dumps(dataclasses.asdict(settings))]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def live(self, word, seconds):
        """Train or resume; return whether it ended by itself, well."""
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = int(self.process.stdout.readline().split()[1])
        assert status in (0, signal.SIGKILL), f"the run failed with status {status}"
        return status == 0


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_prompts_that_load_or_none_and_a_run_that_resumes(place, tmp_path):
    output = tmp_path / "run"
    lives = Lives(tiny_settings(place, output, steps=4, handwritten=None, metric_rows=1))
    try:
        began = time.perf_counter()
        assert lives.live("train", None)
        full, whole = time.perf_counter() - began, weights(output)
        draw, states = random.Random(3), set()
        for number in range(20):
            word = "resume" if number % 2 and folders.is_run(output) and not _is_finished(output) else "train"
            lives.live(word, draw.uniform(0, full * 1.05))
            states.add(_loads(place, output))
            for leftover in output.glob("*.json"):
                json.loads(leftover.read_text())
            if (output / "loss_curve.png").exists():
                assert (output / "loss_curve.png").read_bytes().endswith(b"IEND\xaeB`\x82")
        assert states == {True, False}, "no kill came before the first prompt, or none after"
        if not folders.is_run(output) or _is_finished(output):
            lives.live("train", full / 2)
        assert lives.live("resume" if folders.is_run(output) and not _is_finished(output) else "train", None)
    finally:
        lives.process.kill()
        lives.process.communicate()
    assert_equal_weights(weights(output), whole)


def _is_finished(output):
    return json.loads((output / "training.json").read_text())["status"] == "finished"


def _loads(place: Path, output: Path) -> bool:
    """Load whatever prompts lie in the folder; anything but a whole one fails."""
    found = [path.parent for path in output.rglob("softprompt_zoo.json")]
    for folder in found:
        zoo.load(AutoModelForCausalLM.from_pretrained(place / "model"), folder)
    return output in found
