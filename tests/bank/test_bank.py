"""A bank of prompts: what goes in comes out, what is damaged is named, and what does not fit is refused."""

import copy
import pickle

import pytest
import torch
from helpers.bank_models import METHODS, TEXT, own_tensors, prompted

import softprompt_zoo as zoo
from softprompt_zoo.bank import folder_store
from softprompt_zoo.testing import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:prompt .* was active and is removed:UserWarning")


def test_what_goes_in_comes_out(filled, address):
    bank, model = filled
    assert len(bank) == 4
    assert list(bank) == sorted(METHODS)
    assert list(bank.names("pre")) == ["prefix"]
    assert "words" in bank
    assert "nobody" not in bank
    assert 7 not in bank
    again = zoo.PromptBank(address, tiny_model("llama"))
    for name, (method, _) in METHODS.items():
        found = again[name]
        assert found.method == method
        assert found.config == model.prompts[name].config
        expected = own_tensors(model.prompts[name], model.prompts.backbone)
        got = own_tensors(found, model.prompts.backbone)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert again.verify() == {}


def test_deleting_and_replacing(filled):
    bank, model = filled
    bank.delete("words", "deep")
    assert list(bank) == ["made", "prefix"]
    with pytest.raises(zoo.UnknownPromptError, match="no prompt 'nobody'"):
        bank.delete("made", "nobody")
    with pytest.raises(zoo.UnknownPromptError, match="no prompt 'words'"):
        bank.get("words")
    with pytest.raises(zoo.PromptExistsError, match="already has a prompt 'made'; choose another name, or overwrite"):
        bank.add_many({"new": model.prompts["words"], "made": model.prompts["words"]})
    assert list(bank) == ["made", "prefix"]
    bank.add("made", model.prompts["words"], overwrite=True)
    assert bank["made"].method == "prompt_tuning"


def test_names_are_paged(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_store, "PAGE_OF_NAMES", 3)
    model = prompted()
    bank = zoo.PromptBank(tmp_path / "bank", model)
    names = [f"{letter}{index}" for letter in "-_Za" for index in range(7)]
    bank.add_many(dict.fromkeys(names, model.prompts["words"]))
    assert list(bank) == sorted(names)
    assert list(bank.names("Z")) == [f"Z{index}" for index in range(7)]
    assert list(bank.names("#")) == []


def test_copies_and_pickles_read_the_same_bank(filled):
    bank, model = filled
    model.prompts.remove("words")
    model.prompts.bank = bank
    expected = model(input_ids=TEXT, prompts="words").logits
    assert torch.equal(copy.deepcopy(model)(input_ids=TEXT, prompts="words").logits, expected)
    if bank.address.startswith("memory"):
        return  # it exists only in this process
    assert torch.equal(pickle.loads(pickle.dumps(model))(input_ids=TEXT, prompts="words").logits, expected)


def damage(bank, name):
    """Flip one bit of an entry in the bank's store."""
    flip = lambda data: data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]  # noqa: E731
    store = bank._store
    if hasattr(store, "_file"):
        with store._file.begin(write=True) as transaction:
            transaction.put(name.encode(), flip(bytes(transaction.get(name.encode()))))
    else:
        store._files.pipe_file(store._path(name), flip(store._files.cat_file(store._path(name))))


def test_a_damaged_entry_is_named_and_not_served(filled):
    bank, model = filled
    model.prompts.remove("prefix")
    model.prompts.bank = bank
    model(input_ids=TEXT, prompts="prefix")
    damage(bank, "prefix")
    store = bank._store
    if hasattr(store, "_file"):  # the stamp is unchanged: the cached prompt stays right
        model(input_ids=TEXT, prompts="prefix")
    bank._cache.clear()
    assert list(bank.verify()) == ["prefix"]
    assert list(zoo.PromptBank(bank.address).verify()) == ["prefix"] or bank.address.startswith("memory")
    for read in (lambda: bank["prefix"], lambda: model(input_ids=TEXT, prompts=[None, "prefix", None, None])):
        with pytest.raises(zoo.CheckpointError, match=r"entry 'prefix' of .* is damaged.*overwrite=True"):
            read()
    model(input_ids=TEXT, prompts="words")
    bank.add("prefix", model.prompts["words"], overwrite=True)
    assert bank.verify() == {}


def test_an_entry_under_another_name_is_damaged(tmp_path):
    model = prompted()
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("alice", model.prompts["words"])
    with bank._store._file.begin(write=True) as transaction:
        transaction.put(b"bob", bytes(transaction.get(b"alice")))
    assert list(bank.verify()) == ["bob"]


def test_what_add_refuses(tmp_path):
    model = prompted()
    bank = zoo.PromptBank(tmp_path / "bank", model, dtype=torch.float16)
    prompt = model.prompts["words"]
    for name in ("", "a b", "../up", "x" * 201, 3, "a#1"):
        with pytest.raises(ValueError, match="prompt name is"):
            bank.add(name, prompt)
    with pytest.raises(TypeError, match=r"expected a prompt, such as model\.prompts"):
        bank.add("a", "words")
    prompt.learned.embeddings.data[0, 0] = 1e6
    with pytest.raises(zoo.UnsupportedError, match=r"values up to 1e\+06, which torch.float16"):
        bank.add("a", prompt)
    with torch.device("meta"):
        empty = tiny_model("llama")
    meta = zoo.get_method("prompt_tuning")(empty.to("meta"), num_virtual_tokens=3)
    with pytest.raises(zoo.UnsupportedError, match="meta device"):
        bank.add("a", meta.prompts["default"])
    assert len(bank) == 0
    with pytest.raises(ValueError, match="dtype is"):
        zoo.PromptBank(tmp_path / "bank", model, dtype=torch.int8)


def test_without_a_model_a_bank_is_listed_checked_and_cleaned(filled, tmp_path):
    bank, _ = filled
    bare = zoo.PromptBank(bank.address)
    assert sorted(bare) == sorted(METHODS)
    assert bare.verify() == {}
    with pytest.raises(zoo.BankError, match="opened without a model"):
        bare.get("words")
    bare.delete("words")
    assert "words" not in bank
    with pytest.raises(zoo.BankError, match="there is no bank in"):
        zoo.PromptBank(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(zoo.BankError, match="there is no bank in"):
        zoo.PromptBank("memory://nothing")


def test_a_prompt_whose_plugin_is_missing_says_so(tmp_path, monkeypatch):
    model = prompted()
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("words", model.prompts["words"])
    lookup = zoo.UnknownMethodError("no soft-prompt method")
    monkeypatch.setattr("softprompt_zoo.bank.restoring.registry.lookup", lambda name: (_ for _ in ()).throw(lookup))
    with pytest.raises(
        zoo.UnknownMethodError, match=r"entry 'words' .* needs the method 'prompt_tuning', .*pip install"
    ):
        bank.get("words")
