"""The conformance suite can fail: each mutation of the code turns a promise red."""

import inspect

import pytest
import torch

from softprompt_zoo import prompts as prompts_module
from softprompt_zoo.sites import attention, stack
from softprompt_zoo.sites.arrange import Selection
from softprompt_zoo.testing import conformance_suite, tiny_model
from softprompt_zoo.testing.subject import Subject

ARCHITECTURES = ["gpt2", "llama", "mistral", "bert", "t5", "bart"]
METHODS = ["prompt_tuning", "prefix_tuning"]


def drop_the_prompt(monkeypatch):
    resolve = prompts_module.Prompts.resolve

    def dropped(self, *args):
        call = resolve(self, *args)
        call.selection = Selection(((),), None)
        return call

    monkeypatch.setattr(prompts_module.Prompts, "resolve", dropped)


def shift_positions_by_one(monkeypatch):
    original = stack.text_positions
    monkeypatch.setattr(stack, "text_positions", lambda *args: original(*args) + 1)


def ignore_the_mask_for_positions(monkeypatch):
    def counted(kwargs, length, past, device):
        return (torch.arange(length, device=device) + past)[None]

    monkeypatch.setattr(stack, "text_positions", counted)


def ignore_the_mask(monkeypatch):
    original = stack.before_forward

    def blind(module, args, kwargs):
        return original(module, args, {**kwargs, "attention_mask": None, "encoder_attention_mask": None})

    monkeypatch.setattr(stack, "before_forward", blind)


def share_one_rows_prompt(monkeypatch):
    def first(tensor, rows, count):
        return tensor[:1].expand(count, *tensor.shape[1:])

    monkeypatch.setattr(attention, "rows_of", first)
    stacked = stack.stack_embeddings

    def first_embeddings(call):
        found = stacked(call)
        return None if found is None else (found[0][:1].expand_as(found[0]), None, found[2])

    monkeypatch.setattr(stack, "stack_embeddings", first_embeddings)


def lose_the_first_label(monkeypatch):
    original = stack._tails

    def lost(*args):
        states, has_tail = original(*args)
        return torch.zeros_like(states), has_tail

    monkeypatch.setattr(stack, "_tails", lost)


def forget_the_relative_bias(monkeypatch):
    monkeypatch.setattr(stack, "relative_bias", lambda *args: None)


CASES = [
    (drop_the_prompt, "promise_02_disabled", METHODS, ARCHITECTURES),
    (drop_the_prompt, "promise_05", METHODS, ["gpt2", "llama", "mistral", "t5", "bart"]),
    (drop_the_prompt, "promise_08_peft_gives", ["prompt_tuning"], ["gpt2", "llama", "bert", "t5"]),
    (shift_positions_by_one, "promise_05", METHODS, ["gpt2", "llama", "mistral"]),
    (shift_positions_by_one, "promise_05", ["prefix_tuning"], ["t5", "bart"]),
    (shift_positions_by_one, "promise_08_peft_gives", ["prefix_tuning"], ["gpt2", "llama", "bert"]),
    (ignore_the_mask_for_positions, "promise_03_rows_left", METHODS, ["gpt2", "llama", "mistral"]),
    (ignore_the_mask, "promise_03_rows_right", METHODS, ["bert", "t5", "bart"]),
    (ignore_the_mask, "promise_03_rows_left", METHODS, ["gpt2", "llama", "mistral"]),
    (share_one_rows_prompt, "promise_10_a_prompt", METHODS, ARCHITECTURES),
    (lose_the_first_label, "promise_05", ["prompt_tuning"], ["gpt2", "llama"]),
    (forget_the_relative_bias, "promise_05", ["prefix_tuning"], ["t5"]),
]


def run_promise(name, method, architecture, tmp_path):
    """Run one promise outside pytest's collection."""
    suite = conformance_suite(method)()
    name, _, side = name.rpartition("_") if name.endswith(("_left", "_right")) else (name, "", "")
    [test] = [value for key, value in inspect.getmembers(suite) if key.startswith(f"test_{name}")]
    given = {
        "subject": lambda: Subject.prompted(architecture, method, suite.options),
        "base": lambda: Subject(architecture, tiny_model(architecture)),
        "side": lambda: side,
        "tmp_path": lambda: tmp_path,
    }
    test(**{parameter: given[parameter]() for parameter in inspect.signature(test).parameters})


@pytest.mark.parametrize(
    ("mutate", "promise", "method", "architecture"),
    [(m, p, method, arch) for m, p, methods, archs in CASES for method in methods for arch in archs],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_mutation_is_noticed(mutate, promise, method, architecture, tmp_path, monkeypatch):
    (tmp_path / "sound").mkdir()
    (tmp_path / "mutated").mkdir()
    run_promise(promise, method, architecture, tmp_path / "sound")
    mutate(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        run_promise(promise, method, architecture, tmp_path / "mutated")
