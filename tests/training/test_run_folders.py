"""A run's folder has one writer, and damaged or incomplete folders are reported."""

import contextlib
import json
import os

import pytest
from helpers.tiny_runs import resume, tiny_settings, train

import softprompt_zoo as zoo
from softprompt_zoo.cli.use import trained_with
from softprompt_zoo.training import folder as folders
from softprompt_zoo.training import record as records


def length(output):
    [prompt] = json.loads((output / "softprompt_zoo.json").read_text())["prompts"].values()
    return prompt["config"]["num_virtual_tokens"]


def check_a_second_run_is_refused(place, output, at_step, **options):
    """Check that a second run is refused while one writes, whose result is the same as without the second."""
    refused = []

    def second():
        with contextlib.suppress(zoo.CheckpointError):
            resume(output) if options.get("resumed") else train(
                tiny_settings(place, output, options={"num_virtual_tokens": 5}, steps=1), overwrite=True
            )
            return
        refused.append(True)

    restore = at_step(4, second)
    train(tiny_settings(place, output))
    restore()
    assert refused
    assert length(output) == 3


@pytest.mark.parametrize("resumed", [True, False])
def test_a_second_run_is_refused(place, tmp_path, at_step, resumed):
    check_a_second_run_is_refused(place, tmp_path / "run", at_step, resumed=resumed)
    assert not (tmp_path / "run" / folders.LOCK_FILE).exists()


def test_runs_without_a_lock_are_noticed(place, tmp_path, at_step, monkeypatch):
    monkeypatch.setattr(folders, "locked", lambda folder: contextlib.nullcontext())
    with pytest.raises(AssertionError):
        check_a_second_run_is_refused(place, tmp_path / "run", at_step)


def test_of_two_runs_that_began_together_the_later_writer_is_refused(place, tmp_path, monkeypatch):
    output, locked = tmp_path / "run", folders.locked

    def another_ends_first(folder):
        monkeypatch.setattr(folders, "locked", locked)
        train(tiny_settings(place, output, steps=1))
        return locked(folder)

    monkeypatch.setattr(folders, "locked", another_ends_first)
    with pytest.raises(zoo.OutputError, match="holds a training run already"):
        train(tiny_settings(place, output, options={"num_virtual_tokens": 5}))
    assert length(output) == 3


@pytest.mark.parametrize("left", [[folders.LOCK_FILE], [folders.LOCK_FILE, ".training.json.0a1b2c3d"]])
def test_a_run_that_was_killed_before_its_first_write_leaves_an_empty_folder(place, tmp_path, left):
    output = tmp_path / "run"
    output.mkdir()
    for name in left:
        (output / name).write_text("{")
    train(tiny_settings(place, output, steps=1))
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".training.json.mine").write_text("{")
    with pytest.raises(zoo.OutputError, match="holds files that are not a training run's"):
        train(tiny_settings(place, tmp_path / "other", steps=1), overwrite=True)


DAMAGES = {
    "status": "begun",
    "settings": {"output": "x", "color": "red"},
    "settings ": {"output": "x", "steps": "8"},
    "settings  ": {"steps": 8},
    "data": {"train": {"path": "x"}},
    "results": {"untrained": {"loss": 1.0}},
    "seconds": {"training": "long"},
    "model": {"backbone": 3},
    "data ": None,
}


def check_damage_is_told(folder, name, value):
    path = folder / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running", name.strip(): value}))
    for read in (resume, trained_with):
        told = None
        try:
            read(folder)
        except (KeyError, AttributeError, TypeError, RecursionError, zoo.ZooError) as error:
            told = error
        assert isinstance(told, zoo.OutputError)
        assert "training.json is damaged: it" in str(told)


@pytest.fixture
def begun(whole, tmp_path):
    record = (whole[0] / "training.json").read_text()
    (tmp_path / "training.json").write_text(record)
    return tmp_path


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_told(begun, name):
    check_damage_is_told(begun, name, DAMAGES[name])


def test_a_record_that_is_not_looked_at_is_noticed(begun, monkeypatch):
    monkeypatch.setattr(records, "_problem", lambda record: None)
    with pytest.raises((AssertionError, ValueError)):
        check_damage_is_told(begun, "settings", {"output": "x", "color": "red"})


def test_nested_json_is_no_record(tmp_path):
    (tmp_path / "training.json").write_text("[" * 100_000)
    assert not records.is_run(tmp_path)


def test_the_lock_is_that_of_the_process_that_died(tmp_path):
    with folders.locked(tmp_path):
        assert (tmp_path / folders.LOCK_FILE).exists()
    (tmp_path / folders.LOCK_FILE).write_text(str(os.getpid()))
    with folders.locked(tmp_path):
        pass
