"""A folder with a tiny model and data, a whole run, and actions in the middle of a run."""

import types

import pytest
from helpers.tiny_runs import save_tiny, tiny_settings, train, write_rows
from transformers import TrainerCallback

from softprompt_zoo.training import peak_memory, run
from softprompt_zoo.training import trainer as trainers

peak_memory.gc = types.SimpleNamespace(collect=lambda: 0)  # collecting garbage takes long with what all tests left


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Return a folder with a tiny model and data."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    write_rows(folder / "train.jsonl", 20)
    write_rows(folder / "validation.jsonl", 6, seed=1)
    return folder


@pytest.fixture(scope="session")
def whole(place):
    """Return the folder of an uninterrupted run, and what it printed."""
    output = place / "whole"
    return output, train(tiny_settings(place, output))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Draw no pictures, which take longer than training a tiny model, except that of `whole`."""
    monkeypatch.setattr(run, "draw_losses", lambda path, *_: path.write_bytes(b""))


class At(TrainerCallback):
    """A callback that does something after a step."""

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
