"""Prefixes that an engine reads from a bank without a model."""

import json
import subprocess
import sys

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from helpers.bank_models import METHODS, prompted
from helpers.uneven_layers import gemma4
from transformers import DynamicCache

import softprompt_zoo as zoo
from softprompt_zoo.bank import records
from softprompt_zoo.testing import tiny_model

TEXT = torch.randint(3, 101, (2, 9), generator=torch.Generator().manual_seed(7))


def filled_cache(prefix, rows, config):
    """Build the cache that transformers keeps of earlier text, with the prefix in place of that text."""
    cache = DynamicCache(config=config)
    for index, (key, value) in enumerate(prefix.layers):
        cache.update(key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1), index)
    return cache


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "qwen3", "opt", "mistral"])
def test_transformers_goes_on_behind_a_prefix_as_the_prompted_model_does(architecture, tmp_path):
    model = prompted(architecture, ["prefix"])
    zoo.PromptBank(tmp_path / "bank", model).add("alice", model.prompts["prefix"])
    reader = zoo.PrefixReader(tmp_path / "bank")
    prefix = reader.read("alice")
    assert prefix.entry == reader.find("alice")
    with torch.no_grad():
        expected = model(input_ids=TEXT).logits
        base = tiny_model(architecture)
        actual = base(input_ids=TEXT, past_key_values=filled_cache(prefix, len(TEXT), base.config)).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_stamp_changes_with_the_prefix_and_is_what_the_whole_entry_has(filled):
    bank, model = filled
    reader = zoo.PrefixReader(bank.address)
    before = reader.find("prefix")
    assert (before.name, before.num_tokens) == ("prefix", 5)
    assert reader.read("prefix").stamp == before.stamp
    bank.add("prefix", model.prompts["deep"], overwrite=True)
    after = reader.find("prefix")
    assert after.num_tokens == 2
    assert after.stamp == reader.read("prefix").stamp != before.stamp
    bank.add("prefix", model.prompts["prefix"], overwrite=True)
    assert reader.find("prefix") == before


def test_what_is_not_there_is_said_so(filled):
    bank, _ = filled
    reader = zoo.PrefixReader(bank.address)
    for name in ("nobody", "../prefix", 7, None):
        assert reader.find(name) is None
        with pytest.raises(zoo.UnknownPromptError, match=f"has no prompt {name!r}"):
            reader.read(name)
    assert list(reader.names("d")) == ["deep"]
    reader.close()
    with pytest.raises(zoo.BankError, match="is closed"):
        reader.find("prefix")


def test_an_entry_that_is_no_plain_prefix_is_refused(filled):
    reader = zoo.PrefixReader(filled[0].address)
    for ask in (reader.find, reader.read):
        with pytest.raises(zoo.UnsupportedError, match=r"'words' of .* holds 'embeddings', so it is no plain prefix"):
            ask("words")


def test_tokens_that_a_strangers_hook_places_are_refused(filled):
    bank, _ = filled
    reader = zoo.PrefixReader(bank.address)
    record = records.decode("prefix", memoryview(reader._store.peek("prefix", 10**9)), bank.address)
    parts = (record.tensors, record.header.method, "elsewhere", "1.0", record.header.config)
    bank._store.write(lambda: [("prefix", records.encode("prefix", *parts))], True)
    for ask in (reader.find, reader.read):
        with pytest.raises(zoo.UnsupportedError, match=r"of the package 'elsewhere'.*as_prefix=True"):
            ask("prefix")


def test_an_entry_of_other_sizes_is_damaged(filled):
    bank, _ = filled
    reader = zoo.PrefixReader(bank.address)
    record = records.decode("prefix", memoryview(reader._store.peek("prefix", 10**9)), bank.address)
    header = record.header
    for tensor in (record.tensors["decoder"][:0], record.tensors["decoder"][:, 1:], record.tensors["decoder"].int()):
        new = records.encode("prefix", {"decoder": tensor}, header.method, header.distribution, "1", header.config)
        bank._store.write(lambda new=new: [("prefix", new)], True)
        with pytest.raises(zoo.CheckpointError, match=r"'decoder' of shape .* expected floating-point numbers"):
            reader.find("prefix")
        with pytest.raises(zoo.CheckpointError, match="add the prompt again"):
            reader.read("prefix")
        assert list(bank.verify()) == ["prefix"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_not_read(value, filled):
    bank, _ = filled
    reader = zoo.PrefixReader(bank.address)
    record = records.decode("prefix", memoryview(reader._store.peek("prefix", 10**9)), bank.address)
    header = record.header
    record.tensors["decoder"][2, 7] = value
    new = records.encode("prefix", record.tensors, header.method, header.distribution, header.version, header.config)
    bank._store.write(lambda: [("prefix", new)], True)
    with pytest.raises(zoo.CheckpointError, match=r"'prefix' of .* holds NaN or infinity in 'decoder'"):
        reader.read("prefix")


def test_a_prefix_that_stays_in_sight_of_windows_is_refused(tmp_path):
    model = zoo.get_method("prefix_tuning")(tiny_model("mistral"), "alice", num_virtual_tokens=3, always_visible=True)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("alice", model.prompts["alice"])
    with pytest.raises(zoo.UnsupportedError, match="always_visible=True"):
        zoo.PrefixReader(bank.address).find("alice")


def test_a_layer_that_reads_anothers_cache_has_its_tokens(tmp_path):
    made = gemma4(global_head_dim=8, num_kv_shared_layers=2, use_double_wide_mlp=True)
    model = zoo.get_method("prefix_tuning")(made, "alice", num_virtual_tokens=3)  # initialized from real words
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("alice", model.prompts["alice"])
    reader = zoo.PrefixReader(bank.address)
    layers = reader.read("alice").layers
    assert torch.equal(layers[2][0], layers[0][0])
    with torch.no_grad():
        next(model.prompts.parameters())[:, 40] += 1
    bank.add("alice", model.prompts["alice"], overwrite=True)
    with pytest.raises(zoo.UnsupportedError, match="in layer 2 than in layer 0, whose cache that layer reads"):
        reader.read("alice")


def test_a_prompt_of_an_encoder_is_refused(tmp_path):
    model = prompted("bert", ["prefix"])
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("alice", model.prompts["prefix"])
    with pytest.raises(zoo.UnsupportedError, match="is for a model of the family 'encoder'"):
        zoo.PrefixReader(bank.address).find("alice")


def test_a_header_longer_than_what_is_read_first_is_read(filled, monkeypatch):
    bank, _ = filled
    whole = zoo.PrefixReader(bank.address).find("prefix")
    monkeypatch.setattr("softprompt_zoo.bank.records.FIRST_BYTES", 16)
    assert zoo.PrefixReader(bank.address).find("prefix") == whole


def test_finding_a_prefix_fetches_no_body(tmp_path, monkeypatch):
    model = zoo.get_method("prefix_tuning")(tiny_model("llama"), "alice", num_virtual_tokens=40)
    bank = zoo.PromptBank(f"memory://{tmp_path}", model)
    bank.add("alice", model.prompts["alice"])
    reader, fetched = zoo.PrefixReader(bank.address), []
    fetch = MemoryFileSystem.cat_file

    def counted(self, path, start=None, end=None, **options):
        found = fetch(self, path, start, end, **options)
        fetched.append(len(found))
        return found

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    assert reader.find("alice").num_tokens == 40
    assert sum(fetched) <= records.FIRST_BYTES
    reader.read("alice")
    assert sum(fetched) > 40 * 64 * 4


@pytest.mark.parametrize("layers", [None, [1], {"decoder": [[2]]}, {"decoder": [2]}, {"decoder": [["a", 8]]}])
def test_a_header_without_layers_is_damaged(layers, tmp_path):
    content = {"format": 1, "backbone": {"family": "causal", "hidden_size": 32, "layers": layers}}
    MemoryFileSystem().pipe_file(f"{tmp_path}/softprompt_bank", records.seal("", json.dumps(content).encode()))
    with pytest.raises(zoo.CheckpointError, match="does not describe the layers of a model"):
        zoo.PrefixReader(f"memory://{tmp_path}")


@pytest.mark.parametrize("kept", [0, 5, 40, 900])
def test_a_record_that_is_cut_off_is_damaged(kept, filled):
    bank, _ = filled
    reader = zoo.PrefixReader(bank.address)
    record = reader._store.peek("prefix", 10**9)
    bank._store.write(lambda: [("prefix", record[:kept])], True)
    with pytest.raises(zoo.CheckpointError, match="add the prompt again"):
        reader.read("prefix")
    if kept < 100:
        with pytest.raises(zoo.CheckpointError, match="add the prompt again"):
            reader.find("prefix")


def own_sizes(model):
    backbone = model.prompts.backbone
    return {
        "model_type": backbone.model_type,
        "vocab_size": backbone.vocab_size,
        "hidden_size": backbone.hidden_size,
        "layers": [shape.key_size for shape in backbone.layers["decoder"]],
    }


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_another_model_is_refused_by_what_an_engine_knows_of_it(architecture, tmp_path):
    model = prompted(architecture, ["prefix"])
    zoo.PromptBank(tmp_path / "bank", model)
    reader = zoo.PrefixReader(tmp_path / "bank")
    assert reader.identity["model_type"] == model.prompts.backbone.model_type
    sizes = own_sizes(model)

    def rows(ids):
        return model.get_input_embeddings()(torch.tensor(ids)).bfloat16()

    reader.check_embeddings(rows, **sizes)
    for wrong in ({"hidden_size": 1}, {"model_type": "gpt2"}, {"layers": [(1, 8)]}):
        with pytest.raises(zoo.BackboneMismatchError, match="use it with the model it was made for"):
            reader.check_embeddings(rows, **sizes | wrong)
    with pytest.raises(zoo.BackboneMismatchError, match="other weights"):
        reader.check_embeddings(lambda ids: rows(ids).roll(1, 0), **sizes)


def test_a_reader_needs_no_transformers(tmp_path):
    model = prompted(names=["prefix"])
    zoo.PromptBank(tmp_path / "bank", model).add("alice", model.prompts["prefix"])
    code = f"""
import sys, softprompt_zoo as zoo
reader = zoo.PrefixReader({str(tmp_path / "bank")!r})
assert reader.find("alice").num_tokens == {METHODS["prefix"][1]["num_virtual_tokens"]}
assert len(reader.read("alice").layers) == 2
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
