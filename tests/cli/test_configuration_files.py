"""`train --config`: a run from a file, and what is said about a file that cannot be used."""

import dataclasses
import json

import pytest
from helpers.commands import invoke, refusal
from helpers.tiny_runs import assert_equal_weights, weights

from softprompt_zoo.config.config_file import config_text, read_config
from softprompt_zoo.training.settings import Settings


def record(folder):
    return json.loads((folder / "training.json").read_text())


def losses(record, name):
    return [entry[name] for entry in record["history"] if name in entry]


def test_a_run_is_repeated_by_the_file_it_leaves(place, tmp_path):
    result = invoke("train", "--config", place / "run" / "config.yaml", "--output", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert_equal_weights(weights(tmp_path / "again"), weights(place / "run"))
    first, again = record(place / "run"), record(tmp_path / "again")
    for name in ("loss", "eval_loss"):
        assert losses(again, name) == losses(first, name)
    assert {**again["settings"], "output": first["settings"]["output"]} == first["settings"]


def test_what_is_given_beside_a_file_wins(place, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        f"""model = {str(place / "model")!r}
method = "prompt"
data = {str(place / "data.jsonl")!r}
steps = 5
learning-rate = 1e-2  # as the flag is spelled
metric_rows = 1
[option]
num_virtual_tokens = 3
init = "random"
"""
    )
    words = ("--steps", 1, "--option", "num_virtual_tokens=2", "--output", tmp_path / "run")
    result = invoke("train", "--config", config, *words)
    assert result.exit_code == 0, result.output
    settings = record(tmp_path / "run")["settings"]
    assert (settings["steps"], settings["learning_rate"], settings["method"]) == (1, 0.01, "prompt_tuning")
    assert settings["options"] == {"num_virtual_tokens": 2, "init": "random"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "run.yaml",
            "steps: 3\nlerning_rate: 0.1\n",
            "run.yaml:2: unknown key 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        (
            "run.toml",
            "seed = 3\n\n# slow\nxyz-q = 1\n",
            "run.toml:4: unknown key 'xyz-q'; expected any of model,",
        ),
        ("run.yaml", "# how long\nsteps: many\n", "run.yaml:2: steps is 'many' (str); expected an integer"),
        ("run.yaml", "target_field: no\n", "run.yaml:1: target_field is False (bool); expected text"),
        ("run.toml", 'model = "m"\noption = [\n 1,\n]\n', ":2: option is [1] (list); expected an object"),
        ("run.toml", "seed = 1\nsteps = 0\n", "run.toml:2: steps is 0; expected an integer of at least 1"),
        (
            "run.yaml",
            "option:\n  init: random\n  num_virtual_tokns: 4\n",
            "run.yaml:3: unknown option 'num_virtual_tokns' for method 'prefix_tuning'; did you mean",
        ),
        (
            "run.toml",
            "[option]\ninit-text = 'a'\n",
            "run.toml:2: unknown option 'init-text' for method 'prefix_tuning'; did you mean 'init_text'?",
        ),
        (
            "run.toml",
            "[option]\ninit = 'random'\n\nnum_virtual_tokens = 0\n",
            "run.toml:4: num_virtual_tokens is 0; expected an integer of at least 1",
        ),
        ("run.yaml", "steps: 3\nsteps: 4\n", "'steps' is given twice"),
        ("run.yaml", "batch-size: 3\nbatch_size: 4\n", "run.yaml:2: 'batch_size' was given above"),
        (
            "run.toml",
            "method = prefix\n",
            "is not TOML: Invalid value (at line 1, column 10); strings need quotation",
        ),
        ("run.yaml", "a: [\n", "is not YAML: while parsing"),
        ("run.yaml", "- steps\n", "holds ['steps'] (list); expected keys with values"),
        ("run.json", "{}", "is not a configuration file; expected a name that ends in .toml, .yaml, .yml"),
        ("run.yaml", None, "cannot be read (No such file or directory)"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, message):
    config = tmp_path / name
    if text is not None:
        config.write_text(text)
    assert message in refusal("train", "--config", config, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_part_of_a_resumed_run(place, tmp_path):
    assert "--config was given with --resume" in refusal("train", "--resume", "--config", tmp_path / "run.yaml")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Others:
    rates: tuple[float, ...] = ()
    name: str | None = None


def test_files_of_other_settings(tmp_path):
    """Values are read as the types that the dataclass declares."""
    config = tmp_path / "other.yml"
    config.write_text("rates: [1e-3, 2.5e3, 1]\n")
    assert read_config(config, Others) == {"rates": (0.001, 2500.0, 1)}
    config.write_text("rates: [1e-3, fast]\n")
    with pytest.raises(ValueError, match=r"other\.yml:1: rates is \[0\.001, 'fast'\] \(list\); expected a fin"):
        read_config(config, Others)


def test_what_is_written_is_read_as_it_was(tmp_path):
    options = {
        "init_text": "on\noff: 1e3 # 'x' \u00e9\t",
        "layers": [1, None],
        "rate": 1e-07,
        "wrappers": {"noise": {}},
    }
    settings = dataclasses.asdict(Settings(output="null", options=options, template="{input}\n", handwritten=" 5"))
    config = tmp_path / "config.yaml"
    config.write_text(config_text(settings, "how\nand why"))
    assert Settings(**read_config(config, Settings)) == Settings(**settings)
