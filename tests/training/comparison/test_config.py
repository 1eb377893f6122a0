"""`compare --config`: a comparison from a file, the file it writes, and messages about files that cannot be used."""

import json

import pytest
from helpers.commands import invoke, refusal

from softprompt_zoo.config.config_file import read_config
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.choices import Choices, Rate
from softprompt_zoo.training.comparison.config import ComparisonConfig, try_field, written_config
from softprompt_zoo.training.comparison.running.choice import Running
from softprompt_zoo.training.settings import Settings


def losses(output):
    found = [json.loads(path.read_text()) for path in (output / "trials").iterdir()]
    return {(one["trial"]["candidate"], one["trial"]["seed"]): one["result"]["row_losses"] for one in found}


def test_a_comparison_is_repeated_by_the_file_it_leaves(compare, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    words = ("--methods", "prompt-tuning", "--baselines", "untrained", "--lengths", 3, "--learning-rates", "2x")
    assert compare(first, *words).exit_code == 0
    result = invoke("compare", "--config", first / "config.yaml", "--output", again, "--seeds", 1)
    assert result.exit_code == 0, result.output
    kept = losses(first)
    assert losses(again) == {("untrained", 1): kept["untrained", 0], ("prompt_tuning", 1): kept["prompt_tuning", 1]}
    result = invoke("compare", "--config", first / "config.yaml")
    assert "3 of 3 trials are already done" in result.output


def test_what_is_written_is_read_as_it_was(tmp_path):
    settings = Settings(model="m", output="o", data="d", label_words={"a": " A", "b": " B"}, template="{input}:\n")
    choices = Choices(
        methods=("cpt",),
        baselines=(),
        seeds=(7,),
        rates=(Rate(0.03), Rate(2.0, is_multiple=True)),
        lengths=(3,),
        starts=("sampled",),
    )
    running = Running(together=3)
    path = tmp_path / "config.yaml"
    path.write_text(written_config(settings, choices, running))
    config = ComparisonConfig(**read_config(path, ComparisonConfig, try_field))
    assert (config.settings(), config.choices(), config.running()) == (settings, choices, running)


def test_lists_are_lists_or_as_flags_have_them(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('seeds = "0,1"\nlengths = [3, 4]\nlearning-rates = [1e-2, "2x"]\nmethods = "cpt"\nquick = true\n')
    choices = ComparisonConfig(**read_config(path, ComparisonConfig, try_field)).choices()
    assert (choices.seeds, choices.lengths, choices.methods, choices.steps) == ((0, 1), (3, 4), ("cpt",), 30)
    assert choices.rates == (Rate(0.01), Rate(2.0, is_multiple=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3\nlerning_rates: 2x\n", "run.yaml:2: unknown key 'lerning_rates'; did you mean 'learning_rates'?"),
        ("learning_rates: [1, fast]\n", "run.yaml:1: --learning-rates is '1,fast', with 'fast'; expected numbers"),
        ("steps: 3\nsteps_each: 3\n", "run.yaml:2: unknown key"),
        ("# few\nshots: 0\n", "run.yaml:2: shots is 0; expected an integer of at least 1"),
        ("methods: prompt\ntogether: 0\n", "run.yaml:2: together is 0; expected an integer of at least 1"),
        ("on: rays\n", "run.yaml:1: on is 'rays'; expected one of 'here', 'ray'"),
        ("baselines: lorra\n", "run.yaml:1: baselines has 'lorra'; did you mean 'lora'?"),
        ("workers: 2\n", "--workers 2 applies to a cluster; give --on ray"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(Bench, "load", lambda *_: pytest.fail("the model was loaded"))
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert message in refusal("compare", "--config", path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
