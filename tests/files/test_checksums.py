"""One flipped bit in one of our files is reported on load, wherever it is."""

import json
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import softprompt_zoo as zoo
from softprompt_zoo.files import damage
from softprompt_zoo.testing import tiny_model

TEXT = torch.arange(5, 14)[None]


TENSOR_FILES = {
    "native": "model.safetensors",
    "half": "model.safetensors",
    "merged": "model.safetensors",
    "peft": "adapter_model.safetensors",
    "embeddings": "prompt_embeds.safetensors",
}


def check_flips(folder, file, tmp_path, places):
    """Flip one bit at each place, and check that a load refuses or gives the same prompt; return how many refuse."""
    data = (folder / file).read_bytes()
    right = zoo.load(tiny_model("llama"), folder).eval()(input_ids=TEXT).logits
    refused = 0
    shutil.copytree(folder, tmp_path / "bad")
    for place, bit in places(data):
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        (tmp_path / "bad" / file).write_bytes(changed)
        try:
            found = zoo.load(tiny_model("llama"), tmp_path / "bad").eval()(input_ids=TEXT).logits
        except zoo.CheckpointError:
            refused += 1
        else:
            assert torch.equal(found, right), (place, bit)
    return refused


def in_tensors(data):
    start = 8 + struct.unpack("<Q", data[:8])[0]
    random = np.random.default_rng(0)
    return [(int(place), int(random.integers(8))) for place in random.integers(start, len(data), size=12)]


def in_index(data):
    """Return places and low bits in the header's JSON, where a flip in a digit or letter may leave valid JSON."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    random = np.random.default_rng(1)
    return [(int(place), int(random.integers(3))) for place in random.integers(8, end, size=16)]


@pytest.mark.parametrize("kind", TENSOR_FILES)
def test_a_flipped_bit_in_a_tensor_is_told(kind, folders, tmp_path):
    assert check_flips(folders / kind, TENSOR_FILES[kind], tmp_path, in_tensors) == 12


@pytest.mark.parametrize("kind", ["native", "merged"])
def test_a_flipped_bit_in_a_header_changes_nothing_or_is_told(kind, folders, tmp_path):
    assert check_flips(folders / kind, TENSOR_FILES[kind], tmp_path, in_index) > 8


def test_the_check_notices_files_that_are_not_held_against_their_checksum(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(damage, "check_tensors", lambda tensors, metadata, path: None)
    with pytest.raises(AssertionError):
        check_flips(folders / "native", "model.safetensors", tmp_path, in_tensors)


@pytest.mark.parametrize(
    ("kind", "file", "change"),
    [
        ("embeddings", "prompt_embeds.json", lambda content: content.update(active=[])),
        ("vocabulary", "soft_tokens.json", lambda content: content.update(scale=2.0)),
        ("vocabulary", "soft_tokens.json", lambda content: content["prompts"]["default"]["ids"].reverse()),
    ],
)
def test_another_number_in_an_index_is_told(kind, file, change, folders, tmp_path):
    shutil.copytree(folders / kind, tmp_path / "bad")
    content = json.loads((tmp_path / "bad" / file).read_text())
    change(content)
    (tmp_path / "bad" / file).write_text(json.dumps(content))
    with pytest.raises(zoo.CheckpointError, match=f"{file} does not match its checksum"):
        zoo.load(tiny_model("llama"), tmp_path / "bad")
    del content["checksum"]  # as an earlier version wrote it, or after a deliberate edit
    (tmp_path / "bad" / file).write_text(json.dumps(content))
    zoo.load(tiny_model("llama"), tmp_path / "bad")


@pytest.mark.parametrize("kind", TENSOR_FILES)
def test_a_file_without_a_checksum_loads(kind, folders, tmp_path):
    shutil.copytree(folders / kind, tmp_path / "old")
    path = tmp_path / "old" / TENSOR_FILES[kind]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata.pop("softprompt_zoo_checksum")
    save_file(load_file(path), path, metadata)
    expected = zoo.load(tiny_model("llama"), folders / kind).eval()(input_ids=TEXT).logits
    assert torch.equal(zoo.load(tiny_model("llama"), tmp_path / "old").eval()(input_ids=TEXT).logits, expected)


def described(path):
    """Return a file's checksum, the bytes it covers as the page describes them, and the file's tensors and texts."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    claimed = metadata.pop("softprompt_zoo_checksum")
    content, tensors = json.dumps(metadata, sort_keys=True).encode(), load_file(path)
    for name, tensor in sorted(tensors.items()):
        content += json.dumps([name, "torch.float32", list(tensor.shape)]).encode() + tensor.numpy().tobytes()
    return claimed, content, tensors, metadata


def test_the_checksum_is_the_one_that_the_page_describes(folders):
    claimed, content, _, _ = described(folders / "native" / "model.safetensors")
    assert claimed == f"{zlib.crc32(content):08x}"


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_file_of_an_earlier_version_is_held_against_its_xxh3_where_xxhash_is_installed(
    is_installed, folders, tmp_path, monkeypatch
):
    if not is_installed:
        monkeypatch.setitem(sys.modules, "xxhash", None)
    shutil.copytree(folders / "native", tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    _, content, tensors, metadata = described(path)
    earlier = {**metadata, "softprompt_zoo_checksum": xxhash.xxh3_64(content).hexdigest()}
    save_file(tensors, path, earlier)
    expected = zoo.load(tiny_model("llama"), folders / "native").eval()(input_ids=TEXT).logits
    assert torch.equal(zoo.load(tiny_model("llama"), tmp_path / "old").eval()(input_ids=TEXT).logits, expected)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path, earlier)
    if is_installed:
        with pytest.raises(zoo.CheckpointError, match="does not match its checksum"):
            zoo.load(tiny_model("llama"), tmp_path / "old")
    else:
        assert not torch.equal(zoo.load(tiny_model("llama"), tmp_path / "old").eval()(input_ids=TEXT).logits, expected)


def test_an_index_of_an_earlier_version_is_held_against_its_xxh3(tmp_path):
    content = {"format": 1, "active": ["default"]}
    earlier = xxhash.xxh3_64(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert damage.unseal({**content, "checksum": earlier}, tmp_path) == content
    with pytest.raises(zoo.CheckpointError, match="does not match its checksum"):
        damage.unseal({**content, "active": [], "checksum": earlier}, tmp_path)
