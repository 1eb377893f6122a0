"""Places of banks: strange, damaged, full, read-only, failing, or closed."""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from helpers.bank_models import METHODS, TEXT, prompted

import softprompt_zoo as zoo
from softprompt_zoo.bank import environment, local_files, object_store
from softprompt_zoo.testing import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:prompt .* was active and is removed:UserWarning")


def test_a_place_with_other_things_is_refused(tmp_path):
    model = tiny_model("llama")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(zoo.BankError, match="a folder with other files"):
        zoo.PromptBank(tmp_path, model)
    with pytest.raises(zoo.BankError, match="is a file"):
        zoo.PromptBank(tmp_path / "notes", model)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "data.mdb").write_bytes(b"x" * 10000)
    with pytest.raises(zoo.CheckpointError, match="damaged, or not a bank"):
        zoo.PromptBank(tmp_path / "strange", model)
    with pytest.raises(zoo.BankError, match="cannot open"):
        zoo.PromptBank("nosuchscheme://bank", model)
    with pytest.raises(zoo.BankError, match=r"holds other files \('notes'\)"):
        zoo.PromptBank(f"file://{tmp_path}", model)
    for address in ("://", "file://", "file:///", "://bank", "memory://"):
        with pytest.raises(zoo.BankError, match="names no location; expected one such as s3://bucket/bank"):
            zoo.PromptBank(address, model)
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
    with pytest.raises(zoo.CheckpointError, match="truncated"):
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
    larger = zoo.PromptBank(tmp_path / "bank", model, max_bytes=2**26)  # it also grows by itself
    larger.add_many(many)
    assert len(bank) == 401
    assert (tmp_path / "bank" / "data.mdb").stat().st_size > 2**18


@contextlib.contextmanager
def without_privileges():
    """Act as a user to whom file permissions apply."""
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
            with pytest.raises(zoo.BankError, match="cannot open or create a bank"):
                zoo.PromptBank(path / "inside", model)
        path.chmod(0o755)


def test_a_file_is_on_the_disk_before_it_has_its_name(monkeypatch, tmp_path):
    """Otherwise, a power failure would leave an empty file under the prompt's name."""
    model = prompted(names=["words"])
    bank = zoo.PromptBank(f"file://{tmp_path}/bank", model)
    events, fsync, link = [], os.fsync, os.link

    def noted(kind, call):
        return lambda *given: (events.append(kind), call(*given))[1]

    monkeypatch.setattr(os, "fsync", noted("sync", fsync))
    monkeypatch.setattr(os, "link", noted("name", link))
    monkeypatch.setattr(os, "replace", noted("name", os.replace))
    for overwrite in (False, True):
        events.clear()
        bank.add("words", model.prompts["words"], overwrite=overwrite)
        assert events == ["sync", "name", "sync"]


def test_a_closed_bank_says_so(filled):
    bank, model = filled
    model.prompts.remove("words")
    model.prompts.bank = bank
    model(input_ids=TEXT, prompts="words")
    again = zoo.PromptBank(bank.address, tiny_model("llama"))
    bank.close()
    bank.close()
    for call in (
        lambda: bank.get("words"),
        lambda: "words" in bank,
        lambda: list(bank),
        lambda: len(bank),
        bank.verify,
        lambda: bank.prepare(["words"]),
        lambda: bank.add("new", model.prompts["made"]),
        lambda: bank.delete("words"),
        lambda: model(input_ids=TEXT, prompts="words"),
    ):
        with pytest.raises(zoo.BankError, match=r"is closed; open it again with zoo\.PromptBank"):
            call()
    model(input_ids=TEXT, prompts="made")  # the model's own prompt
    assert list(again) == sorted(METHODS)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_new_file_is_moved_to_a_free_name_alone(has_links, tmp_path, monkeypatch):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *given: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    model = prompted(names=["words", "prefix"])
    bank = zoo.PromptBank(f"file://{tmp_path}/bank", model)
    bank.add("x", model.prompts["words"])
    with pytest.raises(zoo.PromptExistsError, match="already has a prompt 'x'"):
        bank.add("x", model.prompts["prefix"])
    assert bank["x"].method == "prompt_tuning"
    bank.add("x", model.prompts["prefix"], overwrite=True)
    assert bank["x"].method == "prefix_tuning"
    assert [path.name for path in (tmp_path / "bank" / "prompts").iterdir()] == ["x.prompt"]


def test_files_of_killed_writers_are_removed(tmp_path):
    model = prompted()
    address = f"file://{tmp_path}/bank"
    zoo.PromptBank(address, model).add("x", model.prompts["words"])
    folder = tmp_path / "bank" / object_store.UNFINISHED
    assert list(folder.iterdir()) == []
    for name, age in (("old", 2 * local_files.UNFINISHED_FOR), ("written just now", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, times=(time.time() - age,) * 2)
    assert list(zoo.PromptBank(address)) == ["x"]
    assert [path.name for path in folder.iterdir()] == ["written just now"]
