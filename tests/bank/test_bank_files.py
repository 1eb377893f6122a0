"""The files of a bank in a folder: half made, removed, damaged, or out of disk space."""

import errno
import os
import random
import shutil
import struct

import lmdb
import pytest
from helpers.bank_models import prompted
from test_bank_places import without_privileges

import softprompt_zoo as zoo
from softprompt_zoo.bank import environment, pages


@pytest.fixture(scope="module")
def model():
    return prompted()


@pytest.fixture
def bank(model, tmp_path):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add_many({f"p{index}": model.prompts["words"] for index in range(60)})
    return bank


@pytest.mark.parametrize("content", [b"", bytes(65664)])
def test_a_bank_that_was_being_made_can_be_made(content, model, tmp_path):
    """LMDB creates its lock file first; a kill, or another process, may come before the data."""
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "lock.mdb").write_bytes(content)
    with pytest.raises(zoo.BankError, match="there is no bank in"):
        zoo.PromptBank(tmp_path / "bank")
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("words", model.prompts["words"])
    assert list(zoo.PromptBank(tmp_path / "bank", model)) == ["words"]


def check_the_lock_file_has_its_room(model, folder):
    zoo.PromptBank(folder, model)
    found = (folder / "lock.mdb").stat()
    assert found.st_blocks * 512 >= found.st_size > 0  # otherwise, touching it on a full disk ends the process


def test_the_lock_file_has_its_room(model, tmp_path, monkeypatch):
    check_the_lock_file_has_its_room(model, tmp_path / "bank")
    lmdb.open(str(tmp_path / "other"), max_readers=environment.MAX_READERS).close()
    assert (tmp_path / "bank" / "lock.mdb").stat().st_size == (tmp_path / "other" / "lock.mdb").stat().st_size
    with open(tmp_path / "other" / "lock.mdb", "wb") as file:
        file.truncate(65664)  # as an older version left it
    check_the_lock_file_has_its_room(model, tmp_path / "other")
    monkeypatch.setattr(environment, "allocate_lock_file", lambda *given: None)
    with pytest.raises(AssertionError):
        check_the_lock_file_has_its_room(model, tmp_path / "third")


def test_a_full_disk_is_told_when_a_bank_is_made(model, tmp_path, monkeypatch):
    full = lambda *given: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(zoo.BankError, match=r"cannot open the bank .*No space left.*free disk space"):
            zoo.PromptBank(tmp_path / "bank", model)
        (tmp_path / "there").mkdir()
        with pytest.raises(zoo.BankError, match="No space left"):
            zoo.PromptBank(tmp_path / "there", model)
    for name in ("bank", "there"):
        zoo.PromptBank(tmp_path / name, model).add("words", model.prompts["words"])
    not_here = lambda *given: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "not supported"))  # noqa: E731
    monkeypatch.setattr(os, "posix_fallocate", not_here)
    zoo.PromptBank(tmp_path / "elsewhere", model)


@pytest.mark.parametrize("becomes", ["removed", "replaced"])
def test_a_write_into_a_folder_that_is_gone_is_not_acknowledged(becomes, bank, model, tmp_path):
    shutil.copytree(bank.address, tmp_path / "copy")
    shutil.rmtree(bank.address)
    if becomes == "replaced":
        shutil.copytree(tmp_path / "copy", bank.address)
    for write in (lambda: bank.add("late", model.prompts["words"]), lambda: bank.delete("p1")):
        with pytest.raises(zoo.BankError, match="removed or replaced after it was opened, so nothing was written"):
            write()
    again = zoo.PromptBank(bank.address, model)  # in the same process, which has the old file open
    assert len(again) == (60 if becomes == "replaced" else 0)
    again.add("late", model.prompts["words"])
    assert (tmp_path / "bank" / "data.mdb").exists()
    assert "late" in zoo.PromptBank(bank.address)


def test_a_folder_without_permission_is_told(bank, tmp_path):
    for name in ("shut", "bank"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name).chmod(0)
    tmp_path.chmod(0o755)
    for above in list(tmp_path.parents)[:2]:
        above.chmod(0o755)
    bank.close()
    with without_privileges():
        for name in ("shut", "bank"):
            for given in (None, prompted()):
                with pytest.raises(zoo.BankError, match=r"cannot open or create a bank .*Permission denied"):
                    zoo.PromptBank(tmp_path / name, given)
    (tmp_path / "bank").chmod(0o755)


@pytest.mark.parametrize("address", ["", "a\0b", "x" * 300])
def test_an_impossible_path_is_told(address, model):
    with pytest.raises(zoo.BankError):
        zoo.PromptBank(address, model)


@pytest.mark.parametrize("address", [3, b"bank", None, ["bank"]])
def test_an_address_that_is_not_a_path_is_told(address, model):
    with pytest.raises(TypeError, match=r"bank's address is .*; expected a folder, or an address such as"):
        zoo.PromptBank(address, model)


def swap(path, first, second, size=4096):
    with open(path, "r+b") as file:
        file.seek(first * size)
        one = file.read(size)
        file.seek(second * size)
        two = file.read(size)
        file.seek(first * size)
        file.write(two)
        file.seek(second * size)
        file.write(one)


def check_swapped_pages_are_found(bank, model, copies):
    path = os.path.join(bank.address, "data.mdb")
    with open(path, "rb") as file:
        data = file.read()
    # The pages of the tree: each has LMDB's page number, and the flag of a branch or a leaf.
    heads = [struct.unpack_from("<QHH", data, start) for start in range(0, len(data), 4096)]
    tree = [place for place, (number, _, flags) in enumerate(heads) if number == place > 1 and flags in (1, 2)]
    used = bank._store._file.handle.stat()
    newest = tree[-used["leaf_pages"] // 2 :]  # the others may be free
    choose = random.Random(0)
    for index in range(8):
        copy = copies / f"copy{index}"
        shutil.copytree(bank.address, copy)
        swap(copy / "data.mdb", *choose.sample(newest, 2))
        with pytest.raises(zoo.CheckpointError, match=r"data\.mdb is damaged.*restore it from a copy"):
            assert list(zoo.PromptBank(copy, model)) is None


def test_swapped_pages_are_found_when_a_bank_is_opened(model, tmp_path, monkeypatch):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add_many({f"q{index:04}": model.prompts["words"] for index in range(400)})
    check_swapped_pages_are_found(bank, model, tmp_path)
    monkeypatch.setattr(environment, "find_damage", lambda *given: "")
    with pytest.raises(AssertionError):
        check_swapped_pages_are_found(bank, model, tmp_path / "again")


def test_pages_of_every_state_pass(model, tmp_path):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    for index in range(30):
        bank.add_many({f"p{index}-{one}": model.prompts["words"] for one in range(9)})
        bank.delete(f"p{index}-3")
        bank._store._file.close()  # so that it is opened again
        with bank._store._file.begin(write=False) as transaction:
            assert pages.find_damage(str(tmp_path / "bank" / "data.mdb"), transaction.id()) == ""
    assert bank.verify() == {}
