"""Loaded prompts do not depend on their file: a program that overwrites it in place, as cp does, changes nothing."""

import shutil
import struct

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.tokens.kinds import PlainTokens

TEXT = torch.arange(5, 14)[None]


FILES = {
    "native": "model.safetensors",
    "merged": "model.safetensors",
    "peft": "adapter_model.safetensors",
    "peft_prefix": "adapter_model.safetensors",
    "embeddings": "prompt_embeds.safetensors",
    "kv": "prefix.safetensors",
    "vocabulary": "model.safetensors",
}


def check_stays(folder, file):
    model = zoo.load(tiny_model("llama"), folder).eval()
    with torch.no_grad():
        before = model(input_ids=TEXT).logits
    path = folder / file
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    with open(path, "r+b") as opened:  # the same file on the disk, as cp and rsync --inplace write it
        opened.seek(start)
        opened.write(bytes(len(data) - start))
    with torch.no_grad():
        assert torch.equal(model(input_ids=TEXT).logits, before)


@pytest.mark.parametrize("kind", FILES)
def test_a_loaded_prompt_stays_when_its_file_is_overwritten(kind, folders, tmp_path):
    shutil.copytree(folders / kind, tmp_path / "copy")
    check_stays(tmp_path / "copy", FILES[kind])


@pytest.mark.parametrize("kind", ["merged", "peft"])
def test_the_check_notices_views_of_the_file(kind, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(PlainTokens, "copied", lambda tensors, device: PlainTokens(tensors))
    shutil.copytree(folders / kind, tmp_path / "copy")
    with pytest.raises(AssertionError):
        check_stays(tmp_path / "copy", FILES[kind])
