"""A bank at an address whose store fails: its content stays as it was, or the message says what is there."""

import contextlib

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers.bank_models import prompted

import softprompt_zoo as zoo
from softprompt_zoo.bank import changes, object_store

WORDS, PREFIX = "prompt_tuning", "prefix_tuning"


class ClientError(Exception):
    """An error that is not an OSError, like those of gcsfs, aiohttp, and botocore."""


class FailingFiles(MemoryFileSystem):
    """Files in memory, with a plan that maps each operation and path to its failure."""

    protocol = "failing"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    plan = staticmethod(lambda operation, path: None)

    def pipe_file(self, path, value, mode="overwrite", **options):
        found = self.plan("put", path)
        if found in ("half", "whole"):
            super().pipe_file(path, value if found == "whole" else value[: len(value) // 2], mode="overwrite")
            raise ClientError("no answer")
        if found is not None:
            raise found
        return super().pipe_file(path, value, mode=mode, **options)

    def cat_file(self, path, start=None, end=None, **options):
        found = self.plan("get", path)
        if found is not None:
            raise found
        return super().cat_file(path, start, end, **options)

    def rm_file(self, path):
        found = self.plan("delete", path)
        if found == "whole":
            super().rm_file(path)
            raise ClientError("no answer")
        if found is not None:
            raise found
        super().rm_file(path)

    def find(self, path, *given, **options):
        found = self.plan("list", path)
        if found is not None:
            raise found
        return super().find(path, *given, **options)


fsspec.register_implementation("failing", FailingFiles, clobber=True)


@contextlib.contextmanager
def failing(operation, first, error, last=None, also=()):
    """Make an operation on prompts fail from its first to its last time, and the operations `also` from then on."""
    count = 0

    def plan(asked, path):
        nonlocal count
        if "prompts" not in path:
            return None
        count += asked == operation
        if asked == operation:
            return error if first <= count <= (first if last is None else last) else None
        return error if asked in also and count >= first else None

    FailingFiles.plan = staticmethod(plan)
    try:
        yield
    finally:
        FailingFiles.plan = staticmethod(lambda operation, path: None)


@pytest.fixture
def model():
    return prompted(names=["words", "prefix"])


@pytest.fixture
def bank(model, monkeypatch):
    monkeypatch.setattr(changes, "PAUSES", (0.0, 0.0, 0.0))
    FailingFiles.store.clear()
    bank = zoo.PromptBank("failing://bank", model)
    bank.add_many(dict.fromkeys("abc", model.prompts["words"]))
    return bank


def methods_of(bank):
    return {name: bank[name].method for name in bank}


def check_a_failed_write_changes_nothing(bank, model, error, act):
    before = dict(FailingFiles.store)
    contents = {path: file.getvalue() for path, file in before.items()}
    with failing(error[0], error[1], error[2], error[3]), pytest.raises(zoo.BankError) as raised:
        act(bank, model)
    assert {path: file.getvalue() for path, file in FailingFiles.store.items()} == contents
    assert "failing://bank could not be written" in str(raised.value)
    assert str(raised.value).endswith("then try again; nothing was changed")


WRITES = {
    "overwrite": lambda bank, model: bank.add_many(dict.fromkeys("abcd", model.prompts["prefix"]), overwrite=True),
    "one": lambda bank, model: bank.add("b", model.prompts["prefix"], overwrite=True),
    "new": lambda bank, model: bank.add_many(dict.fromkeys("xyz", model.prompts["prefix"])),
}
FAILURES = [OSError("reset"), ClientError("503"), TimeoutError(), "half", "whole"]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("again", [0, 2])  # more failures, while the old entries are put back
def test_a_failed_write_changes_nothing(write, failure, again, bank, model):
    first = 1 if write == "one" else 3
    check_a_failed_write_changes_nothing(bank, model, ("put", first, failure, first + again), WRITES[write])
    assert methods_of(bank) == dict.fromkeys("abc", WORDS)


@pytest.mark.parametrize("failure", [OSError("reset"), ClientError("503"), "whole"], ids=repr)
def test_a_failed_delete_changes_nothing(failure, bank, model):
    act = lambda bank, model: bank.delete("a", "b", "c")  # noqa: E731
    check_a_failed_write_changes_nothing(bank, model, ("delete", 2, failure, 3), act)


@pytest.mark.parametrize("put_back", [lambda self, change: None, None])
def test_the_check_of_failed_writes_can_fail(put_back, bank, model, monkeypatch):
    if put_back is None:  # the change under way when the write failed is forgotten
        monkeypatch.setattr(changes.Changes, "note", lambda *given: None)
    else:
        monkeypatch.setattr(changes.Changes, "_put_back", put_back)
    with pytest.raises(AssertionError):
        check_a_failed_write_changes_nothing(bank, model, ("put", 1, "half", 1), WRITES["one"])


def test_a_store_that_stays_down_leaves_what_the_message_says(bank, model):
    with (
        failing("put", 3, ClientError("down"), last=99, also=("get", "delete")),
        pytest.raises(zoo.BankError, match=r"not everything could be restored: 'a', 'b', 'c': unknown, since it "),
    ):
        WRITES["overwrite"](bank, model)
    assert methods_of(bank) == {"a": PREFIX, "b": PREFIX, "c": WORDS}


def test_a_store_that_can_only_be_read_leaves_what_the_message_says(bank, model):
    with failing("put", 2, "half", last=99), pytest.raises(zoo.BankError) as raised:
        WRITES["overwrite"](bank, model)
    state = "'a', 'b': damaged (add again with overwrite=True, or delete)"
    assert f"{state}; everything else is unchanged" in str(raised.value)
    assert list(bank.verify()) == ["a", "b"]
    bank.add_many(dict.fromkeys("ab", model.prompts["words"]), overwrite=True)
    with failing("put", 2, OSError("full"), last=99), pytest.raises(zoo.BankError) as raised:
        WRITES["overwrite"](bank, model)
    assert "'a': the new one; everything else is unchanged" in str(raised.value)
    assert methods_of(bank) == {"a": PREFIX, "b": WORDS, "c": WORDS}
    with (
        failing("delete", 2, OSError("full"), last=99, also=("put",)),
        pytest.raises(zoo.BankError, match=r"'c': gone \(add again\); everything else is unchanged"),
    ):
        bank.delete("c", "a", "b")
    assert list(bank) == ["a", "b"]


def test_an_interrupted_write_is_put_back(bank, model):
    with failing("put", 3, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        WRITES["overwrite"](bank, model)
    assert methods_of(bank) == dict.fromkeys("abc", WORDS)
    with failing("put", 3, KeyboardInterrupt(), last=99), pytest.raises(KeyboardInterrupt):
        WRITES["overwrite"](bank, model)
    assert methods_of(bank)["c"] == WORDS


def test_what_another_writer_put_there_meanwhile_stays(bank, model, monkeypatch):
    put = bank._store._put

    def overtaken(path, data, mode):
        put(path, data, mode)
        monkeypatch.setattr(bank._store, "_put", put)
        zoo.PromptBank("failing://bank", model).add("a", model.prompts["words"], overwrite=True)
        raise ClientError("no answer")

    bank.add("a", model.prompts["prefix"], overwrite=True)
    other = prompted(names=["made"]).prompts["made"]
    monkeypatch.setattr(bank._store, "_put", overtaken)
    with pytest.raises(zoo.BankError, match="nothing was changed"):
        bank.add("a", other, overwrite=True)
    assert bank["a"].method == WORDS


@pytest.mark.parametrize("error", [OSError("reset"), ClientError("503"), TimeoutError()], ids=repr)
@pytest.mark.parametrize(
    ("operation", "read"),
    [
        ("get", lambda bank: bank.get("b")),
        ("get", lambda bank: "b" in bank),
        ("get", lambda bank: bank.verify()),
        ("get", lambda bank: bank.prepare(["a", "b"])),
        ("list", lambda bank: list(bank)),
        ("list", len),
    ],
)
def test_a_failed_read_says_where(operation, read, error, bank):
    name = type(error).__name__
    with (
        failing(operation, 1, error),
        pytest.raises(zoo.BankError, match=f"failing://bank could not be read: {name}[:;] "),
    ):
        read(bank)


def test_only_entries_are_listed(bank):
    store = bank._store
    data = store._files.cat_file(store._path("a"))
    folder = f"{store._root}/{object_store.FOLDER}"
    for name in ("sub/a.prompt", "bad name\x1b[2J.prompt", ".prompt", "a.prompt.bak", f"{'A' * 300}.prompt", "notes"):
        store._files.pipe_file(f"{folder}/{name}", data)
    assert list(bank) == list(bank.names()) == ["a", "b", "c"]
    assert len(bank) == 3
    assert all(name in bank for name in bank)
    assert bank.verify() == {}


def test_a_header_that_was_half_written_is_taken_back(model):
    FailingFiles.store.clear()
    FailingFiles.plan = staticmethod(lambda operation, path: "half" if operation == "put" else None)
    with pytest.raises(zoo.BankError, match=r"no answer.*nothing was changed"):
        zoo.PromptBank("failing://new", model)
    FailingFiles.plan = staticmethod(lambda operation, path: None)
    zoo.PromptBank("failing://new", model).add("a", model.prompts["words"])
