"""The output of a dry run, which leaves no files."""

import json
import re

import pytest
import torch
from helpers.commands import invoke, refusal
from helpers.tiny_runs import save_tiny, write_rows
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt_zoo.training.amounts import shown_bytes, shown_time
from softprompt_zoo.training.memory import estimate


@pytest.fixture
def words(place):
    files = ("--data", place / "train.jsonl", "--validation", place / "validation.jsonl")
    return ("train", place / "model", "prefix", *files, "--dtype", "float32", "--option", "num_virtual_tokens=3")


def dry_run(*words, **options):
    result = invoke(*words, "--dry-run", env={"COLUMNS": "200"}, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_dry_run_says_what_the_run_would_do(words, place, tmp_path):
    printed = dry_run(*words, "--output", tmp_path / "run", "--steps", 10, "--batch-size", 4, "--max-length", 10)
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    layers = model.config.num_hidden_layers
    width = model.config.num_key_value_heads * model.config.head_dim
    assert f"{layers * 2 * 3 * width:,} trained, {model.num_parameters():,} frozen, in float32" in printed
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    texts = [tokenizer(row["input"] + "\n").input_ids for row in rows]
    lengths = [len(text) + 3 + 1 for text in texts]  # three words and the end
    kept = sum(length <= 10 for length in lengths)
    assert 0 < kept < 20
    assert re.search(rf"rows +{kept} to train on, \d to validate on; \d+ rows of more than 10 tokens are left", printed)
    assert f"10 of 4 rows, which is {40 / kept:.1f} epochs" in printed
    first = texts[next(index for index, length in enumerate(lengths) if length <= 10)]
    assert "3 virtual tokens, keys and values of decoder" in printed
    shown = re.findall(r"^ +read +(.*?) *$", printed, re.MULTILINE)
    assert shown == [" ".join(repr(tokenizer.decode([token])) for token in first)]
    assert re.search(r"^ +read, in the loss +'w\d+' 'w\d+' 'w\d+' '</s>' *$", printed, re.MULTILINE)
    assert re.search(r"time, estimated +\d+ s", printed)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_the_run_would_and_leaves_a_run_as_it_is(words, tmp_path):
    output = tmp_path / "run"
    assert invoke(*words, "--steps", 1, "--metric-rows", 1, "--output", output).exit_code == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert "holds a training run already" in refusal(*words, "--output", output, "--dry-run")
    dry_run(*words, "--output", output, "--overwrite")
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert "--dry-run was given with --resume" in refusal("train", "--resume", "--dry-run")


def test_an_encoder_decoder_writes_its_labels(tmp_path):
    save_tiny(tmp_path / "t5", "t5")
    write_rows(tmp_path / "rows.jsonl", 4)
    words = ("train", tmp_path / "t5", "prompt", "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "run")
    printed = dry_run(*words, "--option", "num_virtual_tokens=2", "--steps", 2, "--batch-size", 2)
    assert re.search(r"^ +prompt 'default' +2 virtual tokens, input embeddings", printed, re.MULTILINE)
    assert re.search(r"^ +written, in the loss +'w\d+'", printed, re.MULTILINE)


class Layer(nn.Module):
    """A layer that keeps its input, for the gradient of its weight, and the output of the tanh."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 6))
        self.frozen = nn.Parameter(torch.ones(6, 6), requires_grad=False)

    def forward(self, x):
        hidden = torch.tanh(x @ self.weight)
        return type("Output", (), {"loss": (hidden @ self.frozen).sum()})


def test_memory_is_what_is_kept():
    memory = estimate(Layer(), {"x": torch.ones(3, 4)})
    assert memory.weights == 4 * (24 + 36)
    assert memory.training == 3 * 4 * 24
    assert memory.row == 4 * (12 + 18)
    assert memory.of_rows(2) == memory.weights + memory.training + 2 * memory.row
    assert memory.rows_in(memory.of_rows(5)) == 5
    assert memory.rows_in(0) == 0


def test_bytes_in_words():
    assert [shown_bytes(count) for count in (5, 2048, 3e6, 1.5e9)] == ["5 B", "2.0 kB", "3.0 MB", "1.50 GB"]


def test_times_in_words():
    assert [shown_time(seconds) for seconds in (5, 120, 7200)] == ["5 s", "2 min", "2.0 h"]
