"""A bank that several threads use at once: readers never wait for a writer, and nothing moves under them."""

import contextlib
import copy
import functools
import os
import threading

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.bank import environment
from softprompt_zoo.testing import tiny_model

SECONDS = 60


@pytest.fixture
def model():
    return zoo.get_method("prefix_tuning")(tiny_model("llama"), "x", num_virtual_tokens=40, init="random")


class Slow(dict):
    """Prompts that are slow to write: `meanwhile` is called before each of them."""

    def __init__(self, names, prompt, meanwhile):
        super().__init__(dict.fromkeys(names, prompt))
        self.meanwhile = meanwhile

    def items(self):
        for name, prompt in super().items():
            self.meanwhile()
            yield name, prompt


@contextlib.contextmanager
def threads(*functions):
    """Run functions in threads beside the block, and raise what they raise."""
    raised = []

    def run(function):
        try:
            function()
        except BaseException as error:
            raised.append(error)

    running = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join(SECONDS)
        assert not thread.is_alive()
    for error in raised:
        raise error


def fill(prompt, value):
    for parameter in prompt.parameters():
        parameter.data.fill_(value)
    return prompt


def values_of(prompt):
    return {value for tensor in prompt.learned.tensors.values() for value in tensor.unique().tolist()}


def test_a_reader_does_not_wait_for_a_writer(model, tmp_path):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("x", model.prompts["x"])
    is_writing, has_read = threading.Event(), threading.Event()

    def meanwhile():
        is_writing.set()
        assert has_read.wait(SECONDS)

    with threads(lambda: bank.add_many(Slow(["a", "b"], model.prompts["x"], meanwhile))):
        assert is_writing.wait(SECONDS)
        server = zoo.get_method("prompt_tuning")(tiny_model("llama"), "own", num_virtual_tokens=2)
        server.prompts.bank = bank
        server(input_ids=torch.ones(2, 3, dtype=torch.long), prompts=["x", "own"])
        assert list(bank) == ["x"]
        has_read.set()
    assert list(bank) == ["a", "b", "x"]


def test_writers_take_turns(model, tmp_path):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    inside = []

    def meanwhile():
        inside.append(threading.current_thread())

    writers = [
        lambda first=first: bank.add_many(Slow([f"{first}{i}" for i in range(9)], model.prompts["x"], meanwhile))
        for first in "abc"
    ]
    with threads(*writers):
        pass
    assert len(bank) == 27
    turns = [index for index in range(1, 27) if inside[index] != inside[index - 1]]
    assert turns == [9, 18]


def test_the_file_grows_under_readers(model, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "FIRST_SIZE", 2**16)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("x", fill(model.prompts["x"], 1.0))
    is_done = threading.Event()

    def read():
        while not is_done.is_set():
            assert values_of(bank["x"]) in ({1.0}, {2.0})
            assert bank["x"].num_virtual_tokens == 40

    def write():
        try:
            for first in range(0, 100, 10):
                bank.add_many(dict.fromkeys([f"p{first + index}" for index in range(10)], model.prompts["x"]))
            bank.add("x", fill(model.prompts["x"], 2.0), overwrite=True)
        finally:
            is_done.set()

    with threads(write, read, read, read):
        pass
    assert (tmp_path / "bank" / "data.mdb").stat().st_size > 2**20
    assert len(bank) == 101
    assert values_of(bank["x"]) == {2.0}
    assert bank.verify() == {}


def test_two_writers_make_room_once(model, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "FIRST_SIZE", 2**16)
    bank = zoo.PromptBank(tmp_path / "bank", model, max_bytes=2**21)

    def write(first):
        bank.add_many({f"{first}{index}": model.prompts["x"] for index in range(20)})

    with threads(*(lambda first=first: write(first) for first in "abcd")):
        pass
    assert len(bank) == 80


@pytest.mark.parametrize("kind", ["folder", "file://{}"])
def test_one_of_several_writers_of_a_new_name_wins(kind, tmp_path):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), "x", num_virtual_tokens=2)
    bank = zoo.PromptBank(str(tmp_path / "bank") if kind == "folder" else kind.format(tmp_path / "bank"), model)
    for turn in range(30):
        at_once, won, lost = threading.Barrier(4), [], []

        def write(writer, name=f"p{turn}", at_once=at_once, won=won, lost=lost):
            prompt = copy.deepcopy(model.prompts["x"])
            fill(prompt, float(writer))
            at_once.wait()
            try:
                bank.add(name, prompt)
                won.append(float(writer))
            except zoo.PromptExistsError:
                lost.append(writer)

        with threads(*(functools.partial(write, writer) for writer in range(4))):
            pass
        assert (len(won), len(lost)) == (1, 3)
        assert values_of(bank[f"p{turn}"]) == set(won)


def test_what_a_writer_may_do_meanwhile(model, tmp_path):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("x", model.prompts["x"])
    seen = []
    bank.add_many(Slow(["a", "b"], model.prompts["x"], lambda: seen.append(list(bank))))
    assert seen == [["x"], ["x"]]
    with pytest.raises(zoo.BankError, match=r"while the same thread is already writing to it; make the prompts first"):
        bank.add_many(Slow(["c"], model.prompts["x"], lambda: bank.add("d", model.prompts["x"])))
    assert list(bank) == ["a", "b", "x"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_a_write_and_readers_do_not(model, tmp_path):
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("x", model.prompts["x"])
    is_writing, may_end, has_forked = threading.Event(), threading.Event(), threading.Event()
    codes = []

    def meanwhile():
        is_writing.set()
        assert may_end.wait(SECONDS)

    def fork():
        assert is_writing.wait(SECONDS)
        child = os.fork()
        if not child:
            try:
                torch.set_num_threads(1)
                bank.add("child", model.prompts["x"])
                os._exit(0 if list(bank) == ["a", "child", "x"] else 1)
            except BaseException:
                os._exit(2)
        has_forked.set()
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with threads(lambda: bank.add_many(Slow(["a"], model.prompts["x"], meanwhile)), fork):
        assert is_writing.wait(SECONDS)
        assert not has_forked.wait(0.2)
        assert list(bank) == ["x"]
        may_end.set()
    assert codes == [0]
    assert list(bank) == ["a", "child", "x"]
