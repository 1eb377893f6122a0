"""Runs that were interrupted and are resumed."""

import json
import signal

import pytest
import torch
from helpers.tiny_runs import assert_equal_weights, resume, save_tiny, tiny_settings, train, weights, write_rows

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.training import folder as folders


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(8, marks=pytest.mark.slow)])
def test_ctrl_c_saves_and_resuming_gives_the_weights_of_an_uninterrupted_run(whole, place, tmp_path, at_step, step):
    output, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    undo = at_step(step, lambda: signal.raise_signal(signal.SIGINT))
    expected = rf"saved after step {step} of 8; to resume, run: softprompt-zoo train --resume --output .*run"
    with pytest.raises(zoo.StoppedError, match=expected):
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
    with pytest.raises(zoo.StoppedError):
        train(tiny_settings(place, tmp_path / "run", method="prompt", options=options))
    undo()
    monkeypatch.chdir(place)
    resume(tmp_path / "run")


def test_a_second_ctrl_c_stops_at_once_and_the_checkpoint_before_is_used(whole, place, tmp_path, at_step):
    def interrupt():
        raise KeyboardInterrupt

    output = tmp_path / "run"
    undo = at_step(5, interrupt)
    with pytest.raises(zoo.StoppedError, match="saved after step 4 of 8"):
        train(tiny_settings(place, output))
    undo()
    assert "resuming after step 4" in resume(output)
    assert_equal_weights(weights(output), weights(whole[0]))


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("half a state", "no optimizer", "half an optimizer")]


@pytest.mark.parametrize("broken", ["no state", "half the weights", *SLOWER])
def test_a_half_written_checkpoint_is_skipped(whole, place, tmp_path, at_step, broken):
    output = tmp_path / "run"
    undo = at_step(6, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(zoo.StoppedError):
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
    assert "resuming after step 4" in resume(output)
    assert_equal_weights(weights(output), weights(whole[0]))


def test_without_any_whole_checkpoint_the_run_begins_again(whole, place, tmp_path, at_step):
    output = tmp_path / "run"
    undo = at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(zoo.StoppedError):
        train(tiny_settings(place, output))
    undo()
    (output / "checkpoint-1" / "trainer_state.json").unlink()
    resume(output)
    assert_equal_weights(weights(output), weights(whole[0]))


def test_what_cannot_be_resumed(whole, place, tmp_path, at_step):
    with pytest.raises(zoo.OutputError, match="is finished; train again with --overwrite"):
        resume(whole[0])
    with pytest.raises(zoo.OutputError, match="holds no training run to resume"):
        resume(tmp_path)
    data = write_rows(tmp_path / "data.jsonl", 12)
    at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(zoo.StoppedError):
        train(tiny_settings(place, tmp_path / "run", data=str(data)))
    write_rows(data, 12, seed=5)
    with pytest.raises(zoo.OutputError, match=r"data\.jsonl has changed since the run"):
        resume(tmp_path / "run")


def test_another_model_is_not_gone_on_with(place, tmp_path, at_step):
    model = tmp_path / "model"
    save_tiny(model)
    undo = at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(zoo.StoppedError):
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


def test_a_record_of_scores_without_metrics_is_gone_on_with(place, tmp_path, at_step):
    """Such records were written before there were metrics other than ROUGE-L."""
    output = tmp_path / "run"
    undo = at_step(2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(zoo.StoppedError):
        train(tiny_settings(place, output))
    undo()
    record = json.loads((output / "training.json").read_text())
    for score in record["results"].values():
        score["rouge_l"] = score.pop("metrics")["rouge_l"] + 0.25
    (output / "training.json").write_text(json.dumps(record))
    resume(output)
    finished = json.loads((output / "training.json").read_text())["results"]
    assert {name: finished[name]["metrics"]["rouge_l"] for name in record["results"]} == {
        name: score["rouge_l"] for name, score in record["results"].items()
    }
