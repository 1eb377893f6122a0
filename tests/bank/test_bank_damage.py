"""Entries and headers with the right checksum and wrong content, arguments of wrong types, and pickles."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from helpers.bank_models import TEXT, prompted

import softprompt_zoo as zoo
from softprompt_zoo.bank import records
from softprompt_zoo.testing import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:prompt .* was active and is removed:UserWarning")


@pytest.fixture(scope="module")
def model():
    return prompted(names=["words", "prefix"])


@pytest.fixture
def bank(model, tmp_path):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add_many({name: model.prompts[name] for name in ("words", "prefix")})
    return bank


def replace(bank, key, data):
    with bank._store._file.begin(write=True) as transaction:
        transaction.put(key.encode(), data)


def stored(bank, key):
    with bank._store._file.begin(write=False) as transaction:
        return bytes(transaction.get(key.encode()))


def _changed(content, path, value):
    content = copy.deepcopy(content)
    *before, last = path
    inner = content
    for step in before:
        inner = inner[step]
    inner[last] = value
    return content


HEADERS = [
    (("embeddings", "values"), [[None]]),
    (("embeddings", "ids"), ["1", 2]),
    (("embeddings", "ids", 0), -3),
    (("embeddings", "columns", 0), 10**9),
    (("embeddings",), 7),
    (("backbone",), ["hidden_size"]),
    (("backbone",), None),
    (("model_type",), {"llama": 1}),
    (("format",), None),
    (("format",), 99),
]
TEXTS = [b"[]", b"null", b"7", b"{}", b"", b"\xff", b"[" * 100_000, b'{"format": 1}']


@pytest.mark.parametrize("change", HEADERS, ids=str)
def test_a_header_with_wrong_values_is_refused(change, bank, model):
    content = json.loads(records.unseal("", stored(bank, "#header")))
    replace(bank, "#header", records.seal("", json.dumps(_changed(content, *change)).encode()))
    with pytest.raises(zoo.CheckpointError, match=r"header of the bank .* is damaged|upgrade|made for"):
        zoo.PromptBank(bank.address, model)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:9]))
def test_a_header_that_says_nothing_is_refused(text, bank, model):
    replace(bank, "#header", records.seal("", text))
    for given in (model, None):
        with pytest.raises(zoo.CheckpointError, match=r"header of the bank .* is damaged; restore"):
            zoo.PromptBank(bank.address, given)


ENTRIES = [
    (("tensors", "embeddings", 0), "float61"),
    (("tensors", "embeddings", 0), "int64"),
    (("tensors", "embeddings", 0), ["float32"]),
    (("tensors", "embeddings", 1), [-3, -16]),
    (("tensors", "embeddings", 1), [3, 10**12]),
    (("tensors", "embeddings", 1), [48]),
    (("tensors", "embeddings", 1), "316"),
    (("tensors", "embeddings"), None),
    (("tensors",), []),
    (("tensors",), {}),
    (("method",), 3),
    (("method",), "no_such_method"),
    (("config",), None),
    (("config",), {"num_virtual_tokens": "3"}),
    (("config", "num_virtual_tokens"), 4),
    (("config", "num_virtual_tokens"), 10**30),
    (("version",), None),
    (("format",), "1"),
]


def check_an_entry_is_refused(bank, content, tensors):
    header = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
    start = records.STAMP_SIZE + 4 + len(header)
    body = len(header).to_bytes(4, "little") + header + bytes(-start % records.ALIGNMENT) + tensors
    replace(bank, "words", records.seal("words", body))
    bank._cache.clear()
    assert list(bank.verify()) == ["words"]
    for read in (lambda: bank["words"], lambda: bank.prepare(["words"])):
        with pytest.raises((zoo.CheckpointError, zoo.UnknownMethodError), match="entry 'words' of"):
            assert read() is None
    assert bank["prefix"].method == "prefix_tuning"


def parts(bank):
    data = stored(bank, "words")
    length = int.from_bytes(data[8:12], "little")
    start = 12 + length
    return json.loads(data[12:start]), data[start + -start % records.ALIGNMENT :]


@pytest.mark.parametrize("change", ENTRIES, ids=str)
def test_an_entry_with_wrong_values_is_refused(change, bank):
    content, tensors = parts(bank)
    check_an_entry_is_refused(bank, _changed(content, *change), tensors)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:9]))
def test_an_entry_that_says_nothing_is_refused(text, bank):
    check_an_entry_is_refused(bank, text, b"")


def test_the_check_of_entries_can_fail(bank, monkeypatch):
    content, tensors = parts(bank)
    monkeypatch.setattr("softprompt_zoo.bank.restoring.check_virtual_tokens", lambda *given: None)
    with pytest.raises(AssertionError):
        check_an_entry_is_refused(bank, _changed(content, ("config", "num_virtual_tokens"), 4), tensors)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_no_prompt_may_have_are_refused(number, bank, model):
    prompt = copy.deepcopy(model.prompts["words"])
    prompt.learned.embeddings.data[1, 2] = number
    with pytest.raises(zoo.UnsupportedError, match=r"prompt 'new' holds NaN or infinity in 'embeddings'"):
        bank.add("new", prompt)
    content, tensors = parts(bank)
    check_an_entry_is_refused(bank, content, torch.tensor([number]).numpy().tobytes() + tensors[4:])


def test_arguments_of_wrong_types_are_told(bank, model):
    prompt = model.prompts["words"]
    for name in (None, 3, [], "a b", torch.ones(2)):
        with pytest.raises(zoo.UnknownPromptError, match="has no prompt"):
            bank.delete("words", name)
        with pytest.raises(zoo.UnknownPromptError, match="has no prompt"):
            bank.get(name)
    for given in (torch.ones(2), "yes", 1, None):
        with pytest.raises(TypeError, match=r"overwrite is .*; expected True or False"):
            bank.add("words", prompt, overwrite=given)
    for prefix in (None, 3, torch.ones(2)):
        with pytest.raises(TypeError, match="prefix is"):
            bank.names(prefix)
    for names in ("words", 3, None):
        with pytest.raises(TypeError, match=r"names is .*; expected a list of names"):
            bank.prepare(names)
    for prompts in (None, ["words"], prompt):
        with pytest.raises(TypeError, match=r"prompts is .*; expected a mapping of names to prompts"):
            bank.add_many(prompts)
    assert list(bank) == ["prefix", "words"]


# Pickles


def test_a_pickle_of_a_bank_is_small_and_opens_what_is_there(bank, model):
    data = pickle.dumps(bank)
    assert len(data) < 1000  # a pickle of the model is more than a hundred times as large
    again = pickle.loads(data)
    assert list(again) == ["prefix", "words"]
    assert again.verify() == {}
    with pytest.raises(zoo.BankError, match="opened without a model"):
        again.get("words")


def test_a_bank_comes_back_with_its_model(bank, model):
    expected = model(input_ids=TEXT, prompts="words").logits
    model = copy.deepcopy(model)
    model.prompts.remove("words")
    model.prompts.bank = bank
    second = zoo.PromptBank(bank.address, model)  # the model already has a bank
    model, second = pickle.loads(pickle.dumps((model, second)))
    assert torch.equal(model(input_ids=TEXT, prompts="words").logits, expected)
    assert model.prompts.bank.get("words").method == "prompt_tuning"
    assert list(second) == ["prefix", "words"]


def check_nothing_is_made(bank, model, place):
    model = copy.deepcopy(model)
    model.prompts.bank = bank
    data = pickle.dumps((bank, model))
    bank.close()
    shutil.move(bank.address, place)
    again, model = pickle.loads(data)
    for read in (lambda: list(again), lambda: model(input_ids=TEXT, prompts=["x", None, None, None])):
        with pytest.raises(zoo.BankError, match="there is no bank in"):
            read()
    model(input_ids=TEXT, prompts="prefix")  # the model's own prompt
    assert not place.parent.joinpath("bank").exists()


def test_a_pickle_whose_bank_is_gone_makes_none(bank, model, tmp_path):
    check_nothing_is_made(bank, model, tmp_path / "elsewhere")


def test_another_models_bank_is_refused_by_a_model_from_a_pickle(bank, model, tmp_path):
    model = copy.deepcopy(model)
    model.prompts.bank = bank
    data = pickle.dumps(model)
    shutil.rmtree(bank.address)
    zoo.PromptBank(bank.address, tiny_model("gpt2"))
    with pytest.raises(zoo.BackboneMismatchError, match="made for a model"):
        pickle.loads(data)(input_ids=TEXT, prompts=["x", None, None, None])
