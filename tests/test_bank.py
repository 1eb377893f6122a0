"""A bank of prompts: what goes in comes out, rows see it as if it were the model's own, and what is refused."""

import contextlib
import copy
import os
import pickle
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from classifiers import classifier

import softprompt_zoo as zoo
from softprompt_zoo.banks import environment, folder_store
from softprompt_zoo.model import inspect_backbone
from softprompt_zoo.sites.shared_pass import causal_prefix
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import Subject
from softprompt_zoo.testing.subject import assert_equal as assert_within
from softprompt_zoo.tokens import to_tensors

METHODS = {
    "words": ("prompt_tuning", {"num_virtual_tokens": 3}),
    "prefix": ("prefix_tuning", {"num_virtual_tokens": 5}),
    "deep": ("p_tuning_v2", {"num_virtual_tokens": 2, "train_head": False}),
    "made": ("p_tuning", {"num_virtual_tokens": 4}),
}


def random_text(length, rows):
    return torch.randint(3, 101, (rows, length), generator=torch.Generator().manual_seed(7))


TEXT = random_text(9, 4)


def assert_equal(actual, expected):
    assert_within(actual, expected, "the bank")


def prompted(architecture="llama", names=("words",), seed=0):
    model = tiny_model(architecture, seed)
    torch.manual_seed(seed)
    for name in names:
        method, options = METHODS[name]
        if not hasattr(model, "prompts"):
            zoo.get_method(method)(model, name, **options)
        else:
            model.prompts.add(name, method, **options)
        for parameter in model.prompts[name].parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(params=["folder", "memory://{}", "file://{}"])
def address(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "bank")
    return request.param.format(tmp_path / "bank")


@pytest.fixture
def filled(address):
    model = prompted(names=METHODS)
    bank = zoo.PromptBank(address, model)
    bank.add_many(model.prompts)
    return bank, model


def own_tensors(prompt, backbone):
    return to_tensors(prompt.merged_tokens(backbone))


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


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_rows_see_a_bank_as_they_see_the_models_own(architecture, tmp_path):
    names = [name for name in METHODS if name != "deep" or architecture != "t5"]
    model = prompted(architecture, names)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add_many(model.prompts)
    rows = ["words", ["prefix", "words"], None, "made"]
    subject = Subject(architecture, model)
    expected = subject.logits(TEXT, prompts=rows)
    continued = subject.generate(TEXT, prompts=rows) if model.can_generate() else None
    for name in ("words", "prefix"):
        model.prompts.remove(name)
    model.prompts.bank = bank
    assert_equal(subject.logits(TEXT, prompts=rows), expected)
    if continued is not None:
        assert torch.equal(subject.generate(TEXT, prompts=rows), continued)
    base = subject.logits(TEXT, prompts=[None] * 4)
    assert not torch.allclose(base[0], expected[0], atol=1e-3)
    assert_equal(base[2:3], expected[2:3])


def test_a_half_precision_bank_gives_what_the_rounded_prompt_gives(tmp_path):
    model = prompted(names=["prefix"])
    bank = zoo.PromptBank(tmp_path / "bank", model, dtype=torch.float16)
    bank.add("rounded", model.prompts["prefix"])
    for parameter in model.prompts.parameters():
        parameter.data = parameter.data.half().float()
    model.prompts.bank = bank
    subject = Subject("llama", model)
    assert_equal(subject.logits(TEXT, prompts="rounded"), subject.logits(TEXT, prompts="prefix"))
    assert bank["rounded"].learned.tensors["decoder"].dtype == torch.float16
    model.to(torch.bfloat16)
    assert bank.prepare(["rounded"])[0].tokens.sites["decoder"].keys[0].dtype == torch.bfloat16


def test_own_names_win_and_none_is_saved(tmp_path):
    model = prompted(names=["words", "prefix"])
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("words", model.prompts["prefix"])
    subject = Subject("llama", model)
    expected = subject.logits(TEXT, prompts="words")
    keys = list(model.state_dict())
    model.prompts.bank = bank
    assert torch.equal(subject.logits(TEXT, prompts="words"), expected)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path / "saved")
    assert zoo.load(tiny_model("llama"), tmp_path / "saved").prompts.keys() == ["words", "prefix"]
    with pytest.raises(zoo.UnknownPromptError, match="no prompt 'new'"):
        model.prompts.activate("new")
    model.prompts.bank = None
    assert model.prompts.bank is None


def test_a_prompt_of_the_models_may_be_called_bank(tmp_path):
    model = tiny_model("llama")
    zoo.get_method("prompt_tuning")(model, "bank", num_virtual_tokens=2)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    model.prompts.bank = bank
    assert model.prompts.bank is bank
    assert model.prompts["bank"].method == "prompt_tuning"


def test_a_missing_name_says_its_row(filled):
    bank, model = filled
    model.prompts.remove("prefix")
    model.prompts.bank = bank
    rows = ["words"] * 7 + [["prefix", "nobody"]]
    text = random_text(5, 8)
    for call in (model, model.generate):
        with pytest.raises(zoo.UnknownPromptError) as raised:
            call(input_ids=text, prompts=rows)
        assert "no prompt 'nobody', named in prompts[7]; the model has 'words'" in str(raised.value)
        assert f"its bank {bank.address} has no prompt of that name" in str(raised.value)


def test_gradients_go_to_own_prompts_alone(tmp_path):
    model = prompted(names=["words", "prefix"])
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add_many({"lent": model.prompts["prefix"], "other": model.prompts["words"]})
    with torch.inference_mode():
        model(input_ids=TEXT[:2], prompts=["words", "words"])
    model.prompts.bank = bank
    with torch.inference_mode():
        model(input_ids=TEXT[:2], prompts=["lent", "other"])
    model.train()
    ids = TEXT
    model(input_ids=ids, labels=ids, prompts=[["lent", "words"], "words", "lent", "other"]).loss.backward()
    assert model.prompts["words"].learned.embeddings.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.prompts["prefix"].parameters())
    assert not bank.prepare(["other"])[0].tokens.embeddings.requires_grad


def test_an_unchanged_prompt_is_computed_once_and_a_replaced_one_is_noticed(filled, monkeypatch):
    bank, model = filled
    for name in METHODS:
        model.prompts.remove(name)
    model.prompts.bank = bank
    subject = Subject("llama", model)
    passes = []
    monkeypatch.setattr(
        "softprompt_zoo.kept_prefixes.causal_prefix", lambda *given: passes.append(1) or causal_prefix(*given)
    )
    subject.generate(TEXT, prompts="words", max_new_tokens=4, do_sample=False)
    subject.logits(TEXT, prompts="words")
    assert len(passes) == 1
    before = subject.logits(TEXT, prompts="words")
    first = bank.prepare(["words"])[0]
    assert bank.prepare(["words"])[0] is first
    other = prompted(names=["words"], seed=5)
    bank.add("words", other.prompts["words"], overwrite=True)
    after = subject.logits(TEXT, prompts="words")
    assert not torch.allclose(before, after, atol=1e-3)
    assert_equal(after, Subject("llama", with_weights_of(model, other)).logits(TEXT, prompts="words"))
    bank.delete("words")
    with pytest.raises(zoo.UnknownPromptError):
        subject.logits(TEXT, prompts="words")


def with_weights_of(model, other):
    base = tiny_model("llama")
    zoo.get_method("prompt_tuning")(base, "words", num_virtual_tokens=3)
    base.prompts["words"].load_state_dict(other.prompts["words"].state_dict())
    return base


def test_decoding_goes_on_with_the_prompt_it_began_with(filled):
    bank, model = filled
    model.prompts.remove("words")
    model.prompts.bank = bank
    ids = TEXT[:1]
    expected = model(input_ids=torch.cat([ids, ids], dim=1), prompts="words").logits[:, ids.shape[1] :]
    with torch.no_grad():
        cache = model(input_ids=ids, prompts="words", use_cache=True).past_key_values
        bank.add("words", model.prompts["made"], overwrite=True)
        continued = model(input_ids=ids, prompts="words", past_key_values=cache).logits
    assert_equal(continued, expected)


def test_a_trained_head_comes_with_its_prompt(tmp_path):
    model = zoo.get_method("p_tuning_v2")(classifier("sequence", "bert"), "film", num_virtual_tokens=3)
    for parameter in model.prompts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("film", model.prompts["film"])
    rows = ["film", None, "film", None]
    expected = model(input_ids=TEXT, prompts=rows).logits
    model.prompts.remove("film")
    model.prompts.bank = bank
    assert_equal(model(input_ids=TEXT, prompts=rows).logits, expected)
    assert bank["film"].head is not None
    other = zoo.PromptBank(tmp_path / "bank", tiny_model("bert"))
    with pytest.raises(zoo.BackboneMismatchError, match=r"entry 'film' .* has a trained task head 'classifier'"):
        other.get("film")


def test_tasks_of_a_multitask_prompt(tmp_path):
    model = zoo.get_method("mpt")(tiny_model("llama"), "many", num_virtual_tokens=3, num_tasks=3)
    for parameter in model.prompts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tasks = [2, 0, 1, 2]
    expected = model(input_ids=TEXT, prompts="many", task_ids=tasks).logits
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("many", model.prompts["many"])
    model.prompts.remove("many")
    model.prompts.bank = bank
    assert_equal(model(input_ids=TEXT, prompts="many", task_ids=tasks).logits, expected)


def test_the_cache_is_bounded(tmp_path):
    model = prompted()
    size = 3 * 32 * 4
    bank = zoo.PromptBank(tmp_path / "bank", model, cache_bytes=5 * size)
    bank.add_many({f"p{index}": model.prompts["words"] for index in range(20)})
    for _ in range(5):
        bank.prepare(random.sample([f"p{index}" for index in range(20)], 8))
        assert bank._cache.size == sum(ready.size for ready in bank._cache._entries.values())
        assert bank._cache.size <= 5 * size
        assert len(bank._cache) == 5
    kept = next(iter(bank._cache._entries.values()))
    assert kept.placement.tokens.embeddings.untyped_storage().nbytes() < 2 * size
    model.prompts.bank = bank
    text = random_text(4, 8)
    rows = [f"p{index}" for index in range(8)]
    expected = model.generate(
        text, attention_mask=torch.ones_like(text), prompts=["words"] * 8, max_new_tokens=3, do_sample=False
    )
    assert torch.equal(
        model.generate(text, attention_mask=torch.ones_like(text), prompts=rows, max_new_tokens=3, do_sample=False),
        expected,
    )
    for start in range(10):  # what was computed of a bank's prompts is bounded, too
        with torch.no_grad():
            model(input_ids=text, prompts=[f"p{start + index}" for index in range(8)])
    assert 0 < len(model.prompts._kept._borrowed(model.prompts.keys())) <= 4


def test_copies_and_pickles_read_the_same_bank(filled):
    bank, model = filled
    model.prompts.remove("words")
    model.prompts.bank = bank
    expected = model(input_ids=TEXT, prompts="words").logits
    assert torch.equal(copy.deepcopy(model)(input_ids=TEXT, prompts="words").logits, expected)
    if bank.address.startswith("memory"):
        return  # of this process alone
    assert torch.equal(pickle.loads(pickle.dumps(model))(input_ids=TEXT, prompts="words").logits, expected)


def test_a_folder_of_saved_prompts_is_imported(tmp_path, address):
    folder = tmp_path / "saved"
    for name in ("words", "prefix"):
        prompted(names=[name]).save_pretrained(folder / name)
    prompted(names=["words", "made"]).save_pretrained(folder / "two")
    zoo.export(prompted(names=["prefix"], seed=3), folder / "theirs")
    (folder / "notes").mkdir()
    model = tiny_model("llama")
    bank = zoo.PromptBank(address, model)
    names = ["prefix", "theirs", "two-made", "two-words", "words"]
    assert sorted(bank.import_folder(folder)) == names
    assert list(bank) == names
    assert bank["theirs"].method == "prefix_tuning"
    (folder / "last.one").mkdir()
    shutil.copytree(folder / "words", folder / "last.one", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"'last\.one', from .*last\.one"):
        zoo.PromptBank(address, model).import_folder(folder, overwrite=True)
    assert list(bank) == names
    shutil.rmtree(folder / "last.one")
    with pytest.raises(zoo.PromptExistsError):
        bank.import_folder(folder)
    with pytest.raises(zoo.CheckpointError, match="holds no saved prompt"):
        bank.import_folder(folder / "notes")
    assert bank.import_folder(folder / "two", overwrite=True) == ["words", "made"]
    assert len(bank) == 6


def damage(bank, name):
    """Flip one bit of an entry, under the bank."""
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
    if hasattr(store, "_file"):  # the stamp is as before: what is ready stays right
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


def test_a_bank_of_another_backbone_is_refused(address):
    model = prompted()
    zoo.PromptBank(address, model).add("words", model.prompts["words"])
    for other in (tiny_model("qwen3"), tiny_model("bert")):
        with pytest.raises(zoo.BackboneMismatchError, match=r"was made for a model with .* this one has"):
            zoo.PromptBank(address, other)
        zoo.get_method("prompt_tuning")(other, num_virtual_tokens=2)
        with pytest.raises(zoo.BackboneMismatchError, match="was made for a model with"):
            other.prompts.bank = zoo.PromptBank(address, model)
        assert other.prompts.bank is None
    wide = prompted("qwen3", ["prefix"])
    bank = zoo.PromptBank(address, model)
    with pytest.raises(zoo.BackboneMismatchError, match="prompt 'wide' does not fit"):
        bank.add("wide", wide.prompts["prefix"])
    assert list(bank) == ["words"]


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


def test_a_place_with_other_things_is_refused(tmp_path):
    model = tiny_model("llama")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(zoo.BankError, match="a folder with other files"):
        zoo.PromptBank(tmp_path, model)
    with pytest.raises(zoo.BankError, match="is a file"):
        zoo.PromptBank(tmp_path / "notes", model)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "data.mdb").write_bytes(b"x" * 10000)
    with pytest.raises(zoo.CheckpointError, match="damaged, or no bank"):
        zoo.PromptBank(tmp_path / "strange", model)
    with pytest.raises(zoo.BankError, match="cannot open"):
        zoo.PromptBank("nosuchscheme://bank", model)
    with pytest.raises(ValueError, match="max_bytes"):
        zoo.PromptBank("memory://bank", model, max_bytes=100)
    with pytest.raises(ValueError, match="storage_options"):
        zoo.PromptBank(tmp_path / "new", model, storage_options={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "strange"]


def test_a_damaged_header_or_a_file_cut_off_is_refused(tmp_path):
    model = prompted()
    path = tmp_path / "bank"
    bank = zoo.PromptBank(path, model)
    bank.add_many({f"p{index}": model.prompts["words"] for index in range(100)})
    bank.close()
    with pytest.raises(zoo.BankError, match="is closed"):
        len(bank)
    del bank
    shutil.copytree(path, tmp_path / "copy")
    with open(tmp_path / "copy" / "data.mdb", "r+b") as file:
        file.truncate(20000)
    with pytest.raises(zoo.CheckpointError, match="cut off"):
        zoo.PromptBank(tmp_path / "copy", model)
    bank = zoo.PromptBank(path, model)
    with bank._store._file.begin(write=True) as transaction:
        transaction.put(b"#header", b"x" + bytes(transaction.get(b"#header")))
    with pytest.raises(zoo.CheckpointError, match=r"header of the bank .* is damaged"):
        zoo.PromptBank(path, model)


def test_a_full_bank_keeps_what_it_had(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "FIRST_SIZE", 2**16)
    model = prompted(names=["words", "prefix"])
    bank = zoo.PromptBank(tmp_path / "bank", model, max_bytes=2**18)
    bank.add("first", model.prompts["words"])
    many = {f"p{index}": model.prompts["prefix"] for index in range(400)}
    with pytest.raises(zoo.BankError, match="is full: max_bytes is 262144"):
        bank.add_many(many)
    assert list(bank) == ["first"]
    assert bank.verify() == {}
    larger = zoo.PromptBank(tmp_path / "bank", model, max_bytes=2**26)  # and it grows by itself
    larger.add_many(many)
    assert len(bank) == 401
    assert (tmp_path / "bank" / "data.mdb").stat().st_size > 2**18


@contextlib.contextmanager
def without_privileges():
    """Be a user to whom file permissions apply."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_can_be_read_and_not_written():
    model = prompted()
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        path = Path(place) / "bank"
        bank = zoo.PromptBank(path, model)
        bank.add("words", model.prompts["words"])
        bank.close()
        del bank
        for file in path.iterdir():
            file.chmod(0o444)
        path.chmod(0o555)
        with without_privileges():
            bank = zoo.PromptBank(path, model)
            for write in (lambda: bank.add("more", model.prompts["words"]), lambda: bank.delete("words")):
                with pytest.raises(zoo.BankError, match="no permission; nothing was changed"):
                    write()
            assert list(bank) == ["words"]
            model.prompts.bank = bank
            model(input_ids=TEXT, prompts="words")
            with pytest.raises(zoo.BankError, match="cannot make a bank"):
                zoo.PromptBank(path / "inside", model)
        path.chmod(0o755)


def test_a_failed_write_at_an_address_is_put_back(monkeypatch, tmp_path):
    model = prompted(names=["words", "prefix"])
    bank = zoo.PromptBank(f"memory://{tmp_path}", model)
    bank.add("old", model.prompts["words"])
    put, count = bank._store._put, []

    def failing(path, data, mode):
        count.append(path)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        put(path, data, mode)

    monkeypatch.setattr(bank._store, "_put", failing)
    with pytest.raises(zoo.BankError, match=r"could not be written: .*No space left.*nothing was changed"):
        bank.add_many({name: model.prompts["prefix"] for name in ("old", "new", "newer")}, overwrite=True)
    assert list(bank) == ["old"]
    assert bank["old"].method == "prompt_tuning"


def test_a_prompt_whose_plugin_is_missing_says_so(tmp_path, monkeypatch):
    model = prompted()
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("words", model.prompts["words"])
    lookup = zoo.UnknownMethodError("no soft-prompt method")
    monkeypatch.setattr("softprompt_zoo.banks.restoring.registry.lookup", lambda name: (_ for _ in ()).throw(lookup))
    with pytest.raises(
        zoo.UnknownMethodError, match=r"entry 'words' .* needs the method 'prompt_tuning', .*pip install"
    ):
        bank.get("words")


def test_a_backbone_will_do_and_nothing_is_changed(tmp_path):
    model = tiny_model("llama")
    keys = list(model.state_dict())
    bank = zoo.PromptBank(tmp_path / "bank", inspect_backbone(model)[0])
    assert len(bank) == 0
    assert list(model.state_dict()) == keys
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=2)
    with pytest.raises(TypeError, match=r"expected a zoo.PromptBank"):
        model.prompts.bank = {"alice": 1}
