"""`prompts.disabled()` gives the base model where it is entered, and nowhere else."""

import asyncio
import contextlib
import copy
import pickle
import threading

import pytest
import torch
from helpers.classifiers import classifier, logits, texts
from helpers.prompted import prompted

import softprompt_zoo as zoo
from softprompt_zoo.model import context as contexts_module
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text

TEXT = random_text(9, 1)


class Worker:
    """A thread that does what it is told, step by step."""

    def __init__(self):
        self.wanted, self.done, self.action, self.found = threading.Event(), threading.Event(), None, None
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self):
        while True:
            self.wanted.wait()
            self.wanted.clear()
            if self.action is None:
                return
            self.found = self.action()
            self.done.set()

    def do(self, action):
        self.action = action
        self.done.clear()
        self.wanted.set()
        assert self.done.wait(60)
        return self.found

    def stop(self):
        self.action = None
        self.wanted.set()
        self.thread.join()


@pytest.fixture
def workers():
    pair = [Worker(), Worker()]
    yield pair
    for worker in pair:
        worker.stop()


def test_threads_overlap_and_do_not_see_each_other(workers):
    subject = prompted(method="prompt_tuning")
    base, full = Subject("llama", tiny_model("llama")).logits(TEXT), subject.logits(TEXT)
    assert (base - full).abs().max() > 1e-3
    contexts = [subject.model.prompts.disabled() for _ in workers]
    steps = [
        (0, contexts[0].__enter__, (base, full)),
        (1, contexts[1].__enter__, (base, base)),
        (0, lambda: contexts[0].__exit__(None, None, None), (full, base)),
        (1, lambda: contexts[1].__exit__(None, None, None), (full, full)),
    ]
    for which, step, expected in steps:
        workers[which].do(step)
        for worker, wanted in zip(workers, expected, strict=True):
            assert torch.equal(worker.do(lambda: subject.logits(TEXT)), wanted)
        assert torch.equal(subject.logits(TEXT), full)


def test_contexts_of_one_thread_may_end_in_any_order():
    subject = prompted(method="prompt_tuning")
    base, full = Subject("llama", tiny_model("llama")).logits(TEXT), subject.logits(TEXT)
    with contextlib.ExitStack() as outer, subject.model.prompts.disabled():
        inner = outer.enter_context(contextlib.ExitStack())
        inner.enter_context(subject.model.prompts.disabled())
        assert torch.equal(subject.logits(TEXT), base)
    assert torch.equal(subject.logits(TEXT), full)
    first, second = subject.model.prompts.disabled(), subject.model.prompts.disabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(subject.logits(TEXT), base)
    second.__exit__(None, None, None)
    assert torch.equal(subject.logits(TEXT), full)


def test_tasks_of_one_thread_do_not_see_each_other_and_take_the_context_along():
    subject = prompted(method="prompt_tuning")
    base, full = Subject("llama", tiny_model("llama")).logits(TEXT), subject.logits(TEXT)

    async def bare(entered, leave):
        with subject.model.prompts.disabled():
            entered.set()
            await leave.wait()
            return await asyncio.to_thread(subject.logits, TEXT)

    async def both():
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(bare(entered, leave))
        await entered.wait()
        beside = subject.logits(TEXT)
        leave.set()
        return beside, await task

    beside, within = asyncio.run(both())
    assert torch.equal(beside, full)
    assert torch.equal(within, base)


def test_another_model_keeps_its_prompts_and_so_does_a_copy():
    subject, other = prompted(method="prompt_tuning"), prompted(method="prefix_tuning")
    full, expected = subject.logits(TEXT), other.logits(TEXT)
    with subject.model.prompts.disabled():
        assert torch.equal(other.logits(TEXT), expected)
        copies = [copy.deepcopy(subject.model), pickle.loads(pickle.dumps(subject.model))]
    for model in copies:
        assert torch.equal(Subject("llama", model).logits(TEXT), full)


def test_generation_in_another_thread_has_the_prompt(workers):
    model = prompted(method="prompt_tuning").model
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(TEXT)}
    expected = model.generate(TEXT, **options)
    base = tiny_model("llama").generate(TEXT, **options)
    assert not torch.equal(expected, base)
    with model.prompts.disabled():
        assert torch.equal(workers[0].do(lambda: model.generate(TEXT, **options)), expected)
        assert torch.equal(model.generate(TEXT, **options), base)


@pytest.mark.parametrize("fullgraph", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_compiled_model_obeys_per_thread(workers, fullgraph):
    subject = prompted(method="prefix_tuning")
    base, full = Subject("llama", tiny_model("llama")).logits(TEXT), subject.logits(TEXT)
    torch._dynamo.reset()
    compiled = torch.compile(subject.model, backend="eager", fullgraph=fullgraph)

    def run():
        with torch.no_grad():
            return compiled(**subject.inputs(TEXT)).logits

    assert_equal(run(), full, "prompted")
    with subject.model.prompts.disabled():
        assert_equal(run(), base, "disabled")
        assert_equal(workers[0].do(run), full, "in another thread")
    assert_equal(run(), full, "prompted again")


def test_a_trained_head_is_used_in_another_thread(workers):
    model = classifier("sequence", "bert")
    ids = texts("sequence")
    base = logits(model, ids)
    zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=4)
    with torch.no_grad():
        for parameter in model.prompts["default"].head.parameters():
            parameter.add_(0.5)
    full = logits(model, ids)
    with model.prompts.disabled():
        assert torch.equal(workers[0].do(lambda: logits(model, ids)), full)
        assert torch.equal(logits(model, ids), base)


def check_tasks(prompts, run, full, base):
    """Let two tasks of one thread take turns; the first has disabled the prompts, the second has not."""

    async def bare(entered, leave):
        with prompts.disabled():
            first = run()
            entered.set()
            await leave.wait()
            return first, run()

    async def both():
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(bare(entered, leave))
        await entered.wait()
        beside = run()
        leave.set()
        return beside, *await task

    for found, expected in zip(asyncio.run(both()), (full, base, base), strict=True):
        assert_equal(found, expected, "a task")
    assert_equal(run(), full, "after both tasks")


compiled_or_not = pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=pytest.mark.slow)])


def runner(subject, is_compiled):
    torch._dynamo.reset()
    model = torch.compile(subject.model, backend="eager", fullgraph=True) if is_compiled else subject.model

    def run():
        with torch.no_grad():
            return model(**subject.inputs(TEXT)).logits

    return run


@compiled_or_not
@pytest.mark.parametrize(("architecture", "method"), [("llama", "prefix_tuning"), ("bert", "prompt_tuning")])
def test_tasks_of_one_thread_keep_their_prompts(architecture, method, is_compiled):
    subject = prompted(architecture, method)
    base, full = Subject(architecture, tiny_model(architecture)).logits(TEXT), subject.logits(TEXT)
    assert (base - full).abs().max() > 1e-3
    check_tasks(subject.model.prompts, runner(subject, is_compiled), full, base)


class ThreadWide:
    """A fake context variable: all tasks see what any one of them has set."""

    def __init__(self):
        self.value = ()

    def get(self):
        return self.value

    def set(self, value):
        self.value = value

    def reset(self, token):
        pass


@compiled_or_not
def test_the_check_of_tasks_notices_what_is_set_for_all_of_them(is_compiled, monkeypatch):
    subject = prompted(method="prefix_tuning")
    base, full = Subject("llama", tiny_model("llama")).logits(TEXT), subject.logits(TEXT)
    monkeypatch.setattr(contexts_module, "DISABLED", ThreadWide())
    with pytest.raises(AssertionError):
        check_tasks(subject.model.prompts, runner(subject, is_compiled), full, base)


@compiled_or_not
def test_a_context_may_be_left_in_another_thread(workers, is_compiled):
    """As in web frameworks, which run the two halves of a dependency in whichever thread is free."""
    subject = prompted(method="prefix_tuning")
    base, full = Subject("llama", tiny_model("llama")).logits(TEXT), subject.logits(TEXT)
    run = runner(subject, is_compiled)
    context = subject.model.prompts.disabled()
    workers[0].do(context.__enter__)
    assert_equal(workers[0].do(run), base, "where it was entered")
    assert_equal(workers[1].do(run), full, "elsewhere")
    workers[1].do(lambda: context.__exit__(None, None, None))
    for worker in workers:
        assert_equal(worker.do(run), full, "after it was left")

    def again():
        with subject.model.prompts.disabled():
            return run()

    assert_equal(workers[0].do(again), base, "entered again")
    assert_equal(workers[0].do(run), full, "left again")
    assert workers[0].do(lambda: len(contexts_module.DISABLED.get())) == 0


def test_a_context_left_in_a_task_that_took_it_along():
    subject = prompted(method="prompt_tuning")
    base, full = Subject("llama", tiny_model("llama")).logits(TEXT), subject.logits(TEXT)

    async def leave(context):
        context.__exit__(None, None, None)

    async def main():
        context = subject.model.prompts.disabled()
        context.__enter__()
        before = subject.logits(TEXT)
        await asyncio.create_task(leave(context))
        return before, subject.logits(TEXT)

    before, after = asyncio.run(main())
    assert torch.equal(before, base)
    assert torch.equal(after, full)
