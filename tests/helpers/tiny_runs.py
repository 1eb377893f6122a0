"""Training runs of tiny models."""

import io
import json
import random

import torch
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softprompt_zoo.testing import tiny_model
from softprompt_zoo.training import run as runs
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
