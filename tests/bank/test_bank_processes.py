"""A bank that several processes use at once: readers and writers, kills, forks, full disks, and memory."""

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import time

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.bank import environment
from softprompt_zoo.testing import tiny_model

TOKENS = 40
PROCESSES = multiprocessing.get_context("fork")
"""A fork needs no second import of torch, and it is the harder case: the child inherits open banks."""

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def model():
    model = tiny_model("llama")
    return zoo.get_method("prefix_tuning")(model, "x", num_virtual_tokens=TOKENS, init="random")


def filled_with(model, value):
    for parameter in model.prompts["x"].parameters():
        parameter.data.fill_(value)
    return model.prompts["x"]


@pytest.fixture
def start():
    """Start child processes, and end them with the test."""
    children = []

    def start(function, *arguments):
        ours, theirs = PROCESSES.Pipe()

        def run():
            torch.set_num_threads(1)
            function(theirs, *arguments)

        child = PROCESSES.Process(target=run)
        child.start()
        theirs.close()
        children.append(child)
        return child, ours

    yield start
    for child in children:
        if child.is_alive():
            child.kill()
        child.join()


def answer(child, pipe, seconds=60):
    """Return what a child sent last, and check that it ended well."""
    found = None
    try:
        while pipe.poll(seconds):
            found = pipe.recv()
    except EOFError:
        pass
    child.join(seconds)
    assert child.exitcode == 0
    return found


def values_of(bank, name):
    tokens = bank.prepare([name])[0].tokens.sites["decoder"]
    return {value for layer in (*tokens.keys, *tokens.values) for value in layer.unique().tolist()}


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_kill_loses_nothing_that_was_acknowledged(kills, model, tmp_path, start):
    bank = zoo.PromptBank(tmp_path / "bank", model)

    def write(pipe, turn):
        index = 0
        while True:
            name = f"p{turn}-{index}"
            if index % 3:
                bank.add(name, filled_with(model, float(index)))
            else:
                bank.add_many({name: filled_with(model, float(index)), f"{name}-b": model.prompts["x"]})
            bank.add("replaced", model.prompts["x"], overwrite=True)
            pipe.send((name, index))
            index += 1

    acknowledged = []
    for turn in range(kills):
        child, pipe = start(write, turn)
        assert pipe.poll(60)
        time.sleep(0.02 * turn % 0.2)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        while pipe.poll():
            try:
                acknowledged.append(pipe.recv())
            except EOFError:
                break
        assert bank.verify() == {}
    assert len(acknowledged) >= kills
    for name, index in acknowledged:
        assert values_of(bank, name) == {float(index)}
        if index % 3 == 0:
            assert f"{name}-b" in bank
    bank.add("after", model.prompts["x"])  # the dead writer's lock is free


def values_read(reader, name):
    return {value for layer in reader.read(name).layers for part in layer for value in part.unique().tolist()}


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_an_engine_reads_whole_prefixes_while_their_writers_are_killed(kills, model, tmp_path, start):
    bank = zoo.PromptBank(tmp_path / "bank", model, as_prefix=True)
    bank.add_many(dict.fromkeys(["alice", "bob"], filled_with(model, 0.0)))
    reader = zoo.PrefixReader(tmp_path / "bank")

    def write(pipe, first):
        number = first
        while True:
            number += 1
            bank.add_many(dict.fromkeys(["alice", "bob"], filled_with(model, float(number))), overwrite=True)
            pipe.send(number)

    last = 0
    for turn in range(kills):
        child, pipe = start(write, last)
        assert pipe.poll(60)
        end = time.monotonic() + 0.02 * (turn + 1) % 0.2
        while time.monotonic() < end:
            assert len(values_read(reader, "alice")) == 1
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        acknowledged = last
        with contextlib.suppress(EOFError):
            while pipe.poll():
                acknowledged = pipe.recv()
        [last] = values_read(reader, "alice")
        assert values_read(reader, "bob") == {last}
        assert last in (acknowledged, acknowledged + 1)
        assert reader.find("alice").stamp == reader.read("alice").stamp
    assert last >= kills
    assert bank.verify() == {}


@pytest.mark.parametrize("kind", ["folder", "file://{}"])
@pytest.mark.parametrize(("readers", "seconds"), [(2, 0.8), pytest.param(8, 20, marks=pytest.mark.slow)])
def test_readers_never_see_half_an_entry(kind, readers, seconds, model, tmp_path, start):
    address = str(tmp_path / "bank") if kind == "folder" else kind.format(tmp_path / "bank")
    bank = zoo.PromptBank(address, model)
    bank.add("x", filled_with(model, 0.0))

    def read(pipe):
        own = zoo.PromptBank(address, model)
        seen, reads, end = set(), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            values = values_of(own, "x")
            assert len(values) == 1, values
            seen |= values
            reads += 1
        pipe.send((len(seen), reads))

    children = [start(read) for _ in range(readers)]
    end, value = time.monotonic() + seconds + 1, 0
    while time.monotonic() < end:
        value += 1
        bank.add("x", filled_with(model, float(value)), overwrite=True)
    for child, pipe in children:
        seen, reads = answer(child, pipe)
        assert seen > 1
        assert reads >= seen
    assert value > 10


def test_two_writers_take_turns(model, tmp_path, start):
    bank = zoo.PromptBank(tmp_path / "bank", model)

    def write(pipe, writer):
        for index in range(15):
            bank.add(f"{writer}-{index}", model.prompts["x"])
        pipe.send("done")

    children = [start(write, writer) for writer in range(2)]
    assert [answer(*child) for child in children] == ["done", "done"]
    assert len(bank) == 30
    ready, waiting = PROCESSES.Event(), PROCESSES.Event()

    def write_late(pipe):
        ready.wait()
        waiting.set()
        bank.add("late", model.prompts["x"])
        pipe.send("done")

    child, pipe = start(write_late)
    with bank._store._file.begin(write=True):
        ready.set()
        assert waiting.wait(30)
        assert not pipe.poll(0.5)
    assert answer(child, pipe) == "done"
    assert "late" in bank


def test_a_forward_does_not_wait_for_a_thread_that_waits_for_another_process(model, tmp_path, start):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("x", model.prompts["x"])
    has_read = PROCESSES.Event()

    def write(pipe):
        with zoo.PromptBank(tmp_path / "bank", model)._store._file.begin(write=True):
            pipe.send("writing")
            pipe.send(has_read.wait(60))

    child, pipe = start(write)
    assert pipe.recv() == "writing"
    late = threading.Thread(target=lambda: bank.add("late", model.prompts["x"]))
    late.start()
    late.join(0.2)
    assert late.is_alive()
    model.prompts.bank = bank
    model(input_ids=torch.ones(1, 3, dtype=torch.long), prompts="x")
    assert list(bank) == ["x"]
    has_read.set()
    assert answer(child, pipe)
    late.join(60)
    assert list(bank) == ["late", "x"]


def test_a_full_disk_leaves_the_bank_as_it_was(model, tmp_path, start):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("first", model.prompts["x"])

    def write(pipe):
        size = (tmp_path / "bank" / "data.mdb").stat().st_size + 2**18
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            bank.add_many({f"p{index}": model.prompts["x"] for index in range(100)})
        except zoo.BankError as error:
            bank.add("small", model.prompts["x"])
            pipe.send((str(error), list(bank), bank.verify()))

    message, names, problems = answer(*start(write))
    assert "could not be written" in message
    assert "MB left; nothing was changed" in message
    assert names == ["first", "small"]
    assert problems == {}
    assert list(bank) == names
    assert bank.verify() == {}


def test_a_bank_survives_a_fork(model, tmp_path, start):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("x", filled_with(model, 1.0))

    def use(pipe):
        before = values_of(bank, "x")
        bank.add("child", filled_with(model, 2.0))
        pipe.send((before, list(bank)))

    before, names = answer(*start(use))
    assert before == {1.0}
    assert names == ["child", "x"]
    assert values_of(bank, "child") == {2.0}
    bank.add("parent", model.prompts["x"])
    assert len(bank) == 3


def test_a_reader_follows_when_another_process_makes_the_file_larger(model, tmp_path, start, monkeypatch):
    monkeypatch.setattr(environment, "FIRST_SIZE", 2**17)
    bank = zoo.PromptBank(tmp_path / "bank", model)

    def write(pipe):
        bank.add_many({f"p{index}": model.prompts["x"] for index in range(100)})
        pipe.send(len(bank))

    assert answer(*start(write)) == 100
    assert (tmp_path / "bank" / "data.mdb").stat().st_size > 2**19
    assert len(bank) == 100
    assert bank.verify() == {}
    bank.delete("p5")


def test_reading_takes_no_memory_of_the_process(model, tmp_path, start):
    bank = zoo.PromptBank(tmp_path / "bank", model, cache_bytes=2**17)
    names = [f"p{index}" for index in range(600)]
    bank.add_many(dict.fromkeys(names, model.prompts["x"]))
    size = (tmp_path / "bank" / "data.mdb").stat().st_size

    def read(pipe):
        own = zoo.PromptBank(tmp_path / "bank", model, cache_bytes=2**17)
        own.prepare(names[:100])
        before = own_memory()
        for start in range(0, len(names), 32):
            own.prepare(names[start : start + 32])
        pipe.send(own_memory() - before)

    assert answer(*start(read)) < size / 4


def own_memory():
    """Return the bytes of memory that only this process has and that no file backs."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
