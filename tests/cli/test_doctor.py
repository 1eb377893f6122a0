"""`doctor`: what it says about a model, and what it finds in runs that went wrong."""

import json
import re
import shutil

import pytest
import torch
from helpers.commands import invoke, refusal
from helpers.tiny_runs import save_tiny
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import softprompt_zoo as zoo
from softprompt_zoo.training.doctor.runs import look_at_losses


def doctor(*words):
    result = invoke("doctor", *words, env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    return result.stdout


def line_of(printed, about):
    return next(line for line in printed.splitlines() if line[4:].startswith(f"{about} "))


def test_a_model_that_prompts_fit(place):
    printed = doctor(place / "model")
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    assert f"parameters  {model.num_parameters():,} in LlamaForCausalLM" in printed
    for name in zoo.list_methods():
        assert line_of(printed, name).rstrip().endswith("fits") or "refused: " in line_of(printed, name)
    assert "fits" in line_of(printed, "prefix_tuning")
    assert "works" in line_of(printed, "sdpa")
    assert re.search(r"batch size +up to [\d,]+ such rows at once", printed)
    assert f"torch {torch.__version__}" in printed
    assert "extra train" in printed
    assert "'</s>' (2)" in line_of(printed, "end of sequence")


def test_what_a_model_would_be_refused_for(tmp_path):
    save_tiny(tmp_path / "bert", "bert")
    assert "refused: this method learns from what a causal language model" in line_of(doctor(tmp_path / "bert"), "cpt")
    save_tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens([f"x{number}" for number in range(60)])
    tokenizer.eos_token = None
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    printed = doctor(tmp_path / "model", "--max-length", 20)
    assert line_of(printed, "tokens").startswith(" ! ")
    assert "125, more than the 101 embeddings" in printed
    assert "answers would never end" in line_of(printed, "end of sequence")
    assert line_of(printed, "padding").startswith(" ! ")


def test_a_row_that_does_not_fit_is_a_problem(place, monkeypatch):
    from softprompt_zoo.training.doctor import models

    monkeypatch.setattr(models, "free_memory", lambda device: 1000)
    line = line_of(doctor(place / "model"), "batch size")
    assert line.startswith(" ! ")
    assert "not one such row fits" in line


def test_a_run_with_a_prompt_far_from_the_words(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    near = line_of(doctor(run), "norms, decoder keys")
    assert not near.startswith(" ! ")
    tensors = load_file(run / "model.safetensors")
    model = zoo.load(AutoModelForCausalLM.from_pretrained(place / "model"), run)
    for parameter in model.prompts["default"].parameters():
        parameter.data *= 100
    model.save_pretrained(run)
    assert load_file(run / "model.safetensors").keys() == tensors.keys()
    far = line_of(doctor(run), "norms, decoder keys")
    assert far.startswith(" ! ")
    assert "the rate may be too high" in far


def test_rows_and_templates_of_a_run(place):
    printed = doctor(place / "run", "--template", r"{input}\n")
    assert "in use" in line_of(printed, "template")
    assert line_of(printed, "template").startswith(" ! ")
    assert "0 rows of more than 512 tokens" in line_of(printed, "left out")
    assert "of 20 in the file" in line_of(printed, "rows")
    assert "2 steps are too few to tell" in line_of(printed, "training loss")


def record(losses, validations=(), trained=1.0, base=2.0):
    history = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    history += [{"step": step, "eval_loss": loss} for step, loss in enumerate(validations, 1)]
    results = {"base model": {"loss": base}, "trained prompt": {"loss": trained}}
    return {"status": "finished", "settings": {"learning_rate": 0.5}, "history": history, "results": results}


FALLING = [3 - step / 10 for step in range(20)]


@pytest.mark.parametrize(
    ("found", "about", "part"),
    [
        (record(FALLING), "training loss", None),
        (record(FALLING[::-1]), "training loss", "it rises; the rate, 0.5, is too high"),
        (record([1.0, 1.2] * 10), "training loss", "no more than noise"),
        (record([3.0, 2.0, float("nan")]), "training loss", "not finite from step 3 on"),
        (record(FALLING, [2.0, 1.0, 0.99, 0.989]), "validation loss", None),
        (record(FALLING, [2.0, 1.0, 1.5]), "validation loss", "it rises again; train with --early-stopping"),
        (record(FALLING, [3.0, 2.0, 1.0]), "validation loss", "it is still falling; more --steps may help"),
        (record(FALLING), "against the base model", None),
        (record(FALLING, trained=2.5), "against the base model", "2.500 with the prompt, not better than 2.000"),
        (record(FALLING, trained=float("nan")), "against the base model", "not better than"),
        ({**record(FALLING), "status": "running"}, "status", "softprompt-zoo train --resume continues it"),
    ],
)
def test_losses(found, about, part):
    [finding] = [finding for finding in look_at_losses(found) if finding.about == about]
    assert finding.is_problem == (part is not None)
    assert (part or "") in finding.text


def test_doctor_refuses_what_is_neither(place, tmp_path):
    assert "is not a folder" in refusal("doctor", tmp_path / "nowhere")
    assert "max_length is 0" in refusal("doctor", place / "model", "--max-length", 0)
    (tmp_path / "training.json").write_text(json.dumps({"made_by": "softprompt-zoo train", "status": "lost"}))
    assert "is damaged" in refusal("doctor", tmp_path)
