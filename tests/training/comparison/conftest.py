"""A bench with a tiny model, and a whole comparison."""

import pytest
from helpers.commands import invoke
from helpers.tiny_runs import tiny_settings

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.choices import Choices

SMALL = ("--steps", 2, "--seeds", "0,1", "--metric-rows", 2, "--dtype", "float32", "--shots", 2)


@pytest.fixture(scope="session")
def bench(place):
    """Return a bench whose model is loaded; every trial leaves the model as it was."""
    settings = tiny_settings(place, place / "unused", options={}, template="{input} :\n")
    made = Bench(settings, Choices(steps=2, batch_size=4, shots=2), lambda line: None)
    made.load()
    return made


@pytest.fixture(scope="session")
def compare(place):
    """Return a function that runs the command on the tiny model."""

    def run(output, *words, **options):
        data = ("--data", place / "train.jsonl", "--validation", place / "validation.jsonl", "--output", output)
        return invoke("compare", place / "model", *data, *SMALL, *words, **options)

    return run


@pytest.fixture(scope="session")
def compared(place, compare):
    """Return the folder of a whole comparison, and what was printed."""
    output = place / "compared"
    result = compare(output, "--methods", "prompt-tuning,cpt", "--handwritten", "w1 w2")
    assert result.exit_code == 0, result.output
    return output, result.output
