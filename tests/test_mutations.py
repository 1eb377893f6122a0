"""The suites can fail: each of their checks is turned red by a mutation of the code."""

import dataclasses
import inspect
import time
from pathlib import Path

import pytest
import torch
from helpers import branch_method, masked_method, scored_method
from helpers.products import each_once
from helpers.text_methods import registered

from softprompt_zoo.model import resolve as resolve_module
from softprompt_zoo.model.resolve import BARE
from softprompt_zoo.prompt import prompt as prompt_module
from softprompt_zoo.sites import batch, checkpointing, hooks, positions
from softprompt_zoo.sites.decoding_state import has_text
from softprompt_zoo.sites.reach import attention_interface
from softprompt_zoo.sites.stacks import causal, decoder, encoder
from softprompt_zoo.sites.state import SiteState
from softprompt_zoo.testing import conformance_suite, operation_suite, tiny_model
from softprompt_zoo.testing.subject import Subject
from softprompt_zoo.tokens.scored_tokens import ScoredTokens

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "every-method-on-every-model.md"
ARCHITECTURES = ["gpt2", "llama", "mistral", "bert", "t5", "bart"]
METHODS = ["prompt_tuning", "prefix_tuning"]
SOUND: set[tuple[str, str]] = set()
"""Checks that passed without a mutation, each with its method; checks of `METHODS` are separate tests."""
SUITES = {"promise": conformance_suite, "operation": operation_suite}


@pytest.fixture(autouse=True)
def more_methods():
    """Register the methods of the helpers: a branch parallel to attention, scores, and a mask of rows."""
    more = {"branch": branch_method.READING, "scored": scored_method.PLUGIN, "masked": masked_method.READING}
    with registered(**more):
        yield


def drop_the_prompt(monkeypatch):
    resolve = resolve_module.resolve

    def dropped(*args):
        return dataclasses.replace(resolve(*args), selection=BARE)

    monkeypatch.setattr(resolve_module, "resolve", dropped)


def count_positions(monkeypatch, counted):
    """Let this function count the text's positions."""
    for module in (positions, encoder):
        monkeypatch.setattr(module, "text_positions", counted)


def shift_positions_by_one(monkeypatch):
    original = positions.text_positions
    count_positions(monkeypatch, lambda *args: original(*args) + 1)


def ignore_the_mask_for_positions(monkeypatch):
    def counted(kwargs, length, past, device):
        return (torch.arange(length, device=device) + past)[None]

    count_positions(monkeypatch, counted)


def ignore_the_mask(monkeypatch):
    original = hooks.before_forward

    def blind(module, args, kwargs):
        return original(module, args, {**kwargs, "attention_mask": None, "encoder_attention_mask": None})

    monkeypatch.setattr(hooks, "before_forward", blind)


def share_one_rows_prompt(monkeypatch):
    def first(tensor, rows, count):
        return tensor[:1].expand(count, *tensor.shape[1:])

    monkeypatch.setattr(batch, "rows_of", first)
    stacked = encoder.stack_embeddings

    def first_embeddings(call):
        found = stacked(call)
        return None if found is None else (found[0][:1].expand_as(found[0]), None, found[2])

    for module in (encoder, decoder):
        monkeypatch.setattr(module, "stack_embeddings", first_embeddings)


def lose_the_first_label(monkeypatch):
    original = causal.tails_of

    def lost(*args):
        states, has_tail = original(*args)
        return torch.zeros_like(states), has_tail

    monkeypatch.setattr(causal, "tails_of", lost)


def forget_the_relative_bias(monkeypatch):
    monkeypatch.setattr(decoder, "relative_bias", lambda *args: None)


def drop_the_prompt_while_decoding(monkeypatch):
    resolve = resolve_module.resolve

    def dropped(prompts, request, cache):
        call = resolve(prompts, request, cache)
        return dataclasses.replace(call, selection=BARE) if has_text(cache) else call

    monkeypatch.setattr(resolve_module, "resolve", dropped)


def shift_the_positions_of_text_behind_a_cache(monkeypatch):
    original = positions.text_positions

    def shifted(kwargs, length, past, device):
        return original(kwargs, length, past, device) + (1 if length > 1 and isinstance(past, int) and past else 0)

    count_positions(monkeypatch, shifted)


def leave_the_backbone_trainable(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "requires_grad_", lambda self, requires_grad=True: self)


def lose_gradients_in_recomputed_layers(monkeypatch):
    monkeypatch.setattr(hooks, "anchor", lambda module, stack, state, kwargs: kwargs)


def halve_the_gradients_of_recomputed_layers(monkeypatch):
    original = checkpointing._Anchor.backward

    def halved(ctx, gradient):
        own, leaves, *collected = original(ctx, gradient)
        return own, leaves, *(part / 2 for part in collected)

    monkeypatch.setattr(checkpointing._Anchor, "backward", staticmethod(halved))


def load_nothing(monkeypatch):
    def zeroed(self, *args, **kwargs):
        with torch.no_grad():
            for parameter in self.parameters():  # memory that was never filled may hold all the freed values
                parameter.zero_()

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", zeroed)


def round_what_is_merged(monkeypatch):
    original = prompt_module.from_tensors

    def rounded(tensors, backbone):
        return original({name: tensor.bfloat16().to(tensor) for name, tensor in tensors.items()}, backbone)

    monkeypatch.setattr(prompt_module, "from_tensors", rounded)


def show_virtual_positions(monkeypatch):
    monkeypatch.setattr(encoder, "cut_output", lambda module, output, layout, pooled: output)


def keep_the_call_on_the_model(monkeypatch):
    resolve = resolve_module.resolve

    def kept(prompts, *args):
        prompts.__dict__["latest"] = resolve(prompts, *args)
        time.sleep(0.002)  # another thread's turn
        return prompts.__dict__["latest"]

    monkeypatch.setattr(resolve_module, "resolve", kept)


def shift_positions_where_compiled(monkeypatch):
    original = positions.text_positions
    count_positions(monkeypatch, lambda *args: original(*args) + int(torch.compiler.is_compiling()))


def add_branches_in_every_row(monkeypatch):
    original = attention_interface.add_branches

    def added(branches, *args):
        return original([dataclasses.replace(own, combinations=None) for own in branches], *args)

    monkeypatch.setattr(attention_interface, "add_branches", added)


def share_one_rows_mask(monkeypatch):
    original = attention_interface.seen_by_rows

    def shared(*args):
        seen = original(*args)
        return seen[:1].expand_as(seen)

    monkeypatch.setattr(attention_interface, "seen_by_rows", shared)


def lose_the_gradients_of_scores(monkeypatch):
    original = SiteState.map
    monkeypatch.setattr(
        SiteState, "map", lambda self, change: dataclasses.replace(original(self, change), scores=self.scores)
    )


def lose_scores_where_prompts_differ(monkeypatch):
    monkeypatch.setattr(batch, "_scores", lambda *args: None)


def lose_scores_where_merged(monkeypatch):
    original = ScoredTokens.tensors
    monkeypatch.setattr(
        ScoredTokens,
        "tensors",
        lambda self: {n: 0 * t if n.endswith("_scores") else t for n, t in original(self).items()},
    )


CASES = [
    (leave_the_backbone_trainable, "promise_01_only", METHODS, ["llama", "bert", "t5"]),
    (drop_the_prompt, "promise_02_disabled", METHODS, ARCHITECTURES),
    (drop_the_prompt, "promise_02_detach", METHODS, ["llama", "bert", "t5"]),
    (ignore_the_mask_for_positions, "promise_03_rows left", METHODS, ["gpt2", "llama", "mistral"]),
    (ignore_the_mask, "promise_03_rows right", METHODS, ["bert", "t5", "bart"]),
    (ignore_the_mask, "promise_03_rows left", METHODS, ["gpt2", "llama", "mistral"]),
    (share_one_rows_mask, "promise_03_rows right", ["masked"], ["llama", "bert", "t5"]),
    (drop_the_prompt_while_decoding, "promise_04_generation", METHODS, ["gpt2", "llama"]),
    (drop_the_prompt_while_decoding, "promise_04_every none", METHODS, ["gpt2", "llama"]),
    (drop_the_prompt_while_decoding, "promise_04_every static", METHODS, ["gpt2", "llama"]),
    (drop_the_prompt_while_decoding, "promise_04_step", METHODS, ["gpt2", "llama"]),
    (drop_the_prompt_while_decoding, "promise_04_beams", METHODS, ["gpt2", "llama"]),
    (shift_the_positions_of_text_behind_a_cache, "promise_04_assisted", METHODS, ["gpt2", "llama"]),
    (shift_the_positions_of_text_behind_a_cache, "promise_04_second", METHODS, ["gpt2", "llama"]),
    (drop_the_prompt, "promise_05_real", METHODS, ["gpt2", "llama", "mistral", "t5", "bart"]),
    (shift_positions_by_one, "promise_05_real", METHODS, ["gpt2", "llama", "mistral"]),
    (shift_positions_by_one, "promise_05_real", ["prefix_tuning"], ["t5", "bart"]),
    (lose_the_first_label, "promise_05_real", ["prompt_tuning"], ["gpt2", "llama"]),
    (forget_the_relative_bias, "promise_05_real", ["prefix_tuning"], ["t5"]),
    (lose_gradients_in_recomputed_layers, "promise_06_checkpointing True", ["prompt_tuning"], ["gpt2", "llama"]),
    (halve_the_gradients_of_recomputed_layers, "promise_06_checkpointing True", METHODS, ["gpt2", "llama"]),
    (lose_the_gradients_of_scores, "promise_06_checkpointing True", ["scored"], ["llama", "bert"]),
    (load_nothing, "promise_07_a_loaded", METHODS, ["llama", "bert", "t5"]),
    (load_nothing, "promise_07_training", METHODS, ["llama", "bert", "t5"]),
    (drop_the_prompt, "promise_08_peft_gives", ["prompt_tuning"], ["gpt2", "llama", "bert", "t5"]),
    (shift_positions_by_one, "promise_08_peft_gives", ["prefix_tuning"], ["gpt2", "llama", "bert"]),
    (drop_the_prompt, "promise_08_we_give", METHODS, ["gpt2", "llama", "bert"]),
    (round_what_is_merged, "promise_09_merged", METHODS, ["llama", "bert", "t5"]),
    (lose_scores_where_merged, "promise_09_merged", ["scored"], ["llama", "t5"]),
    (share_one_rows_prompt, "promise_10_a_prompt", METHODS, ARCHITECTURES),
    (lose_scores_where_prompts_differ, "promise_10_a_prompt", ["scored"], ["llama", "bert", "t5"]),
    (add_branches_in_every_row, "promise_10_a_prompt", ["branch"], ["llama", "bert", "t5"]),
    (share_one_rows_prompt, "promise_10_generation", METHODS, ["gpt2", "llama"]),
    (show_virtual_positions, "promise_11_output", ["prompt_tuning"], ["bert"]),
    (drop_the_prompt, "operation_attention eager", ["prefix_tuning"], ["bert"]),
    (drop_the_prompt, "operation_attention flex_attention", ["prompt_tuning"], ["llama"]),
    (drop_the_prompt, "operation_bfloat16", METHODS, ["llama"]),
    (share_one_rows_prompt, "operation_caches", METHODS, ["llama"]),
    (drop_the_prompt_while_decoding, "operation_caches", ["prefix_tuning"], ["gpt2"]),
    (shift_positions_where_compiled, "operation_compiled False", ["prefix_tuning"], ["gpt2"]),
    (drop_the_prompt, "operation_generation", METHODS, ["llama"]),
    (ignore_the_mask, "operation_masks", ["prefix_tuning"], ["bert"]),
    (ignore_the_mask_for_positions, "operation_masks", METHODS, ["llama"]),
    (ignore_the_mask_for_positions, "operation_packed", METHODS, ["llama"]),
    (shift_the_positions_of_text_behind_a_cache, "operation_prompt_lookup", METHODS, ["llama"]),
    (show_virtual_positions, "operation_returned", ["prompt_tuning"], ["bert"]),
    (ignore_the_mask, "operation_returned", ["prefix_tuning"], ["bert"]),
    (drop_the_prompt_while_decoding, "operation_sampling", METHODS, ["llama"]),
    (show_virtual_positions, "operation_sequence", ["prompt_tuning"], ["bert"]),
    (share_one_rows_prompt, "operation_sequence", METHODS, ["llama"]),
    (keep_the_call_on_the_model, "operation_threads_that_generate", ["prefix_tuning"], ["llama"]),
    (keep_the_call_on_the_model, "operation_threads_that_train", ["prompt_tuning"], ["gpt2"]),
    (keep_the_call_on_the_model, "operation_threads_with", METHODS, ["llama"]),
]
"""Mutation, the beginning of the check's name (with its parametrized value), methods, architectures."""


def checks(beginning=""):
    """Return the suites' checks by name."""
    found = {}
    for group, suite in SUITES.items():
        for name, check in inspect.getmembers(suite("prompt_tuning"), inspect.isfunction):
            if name.startswith(f"test_{group}_{beginning.removeprefix(group + '_')}"):
                found[name] = check
    return found


def table():
    """Return the page's table: for each check, the mutations that turn it red."""
    lines = ["| property | mutations that turn it red |", "| --- | --- |"]
    for name in checks():
        title = name.removeprefix("test_operation_")
        if title == name:
            number, title = name.removeprefix("test_promise_").split("_", 1)
            title = f"{int(number)}: {title}"
        mutations = [mutate for mutate, case, *_ in CASES if name.startswith(f"test_{case.partition(' ')[0]}")]
        named = "; ".join(dict.fromkeys(mutate.__name__.replace("_", " ") for mutate in mutations))
        lines.append(f"| {title.replace('_', ' ')} | {named} |")
    return "\n".join(lines)


def test_every_check_is_turned_red_and_the_page_says_by_what():
    red = {next(iter(checks(case.partition(" ")[0]))) for _, case, *_ in CASES}
    assert red == set(checks())
    assert table() in PAGE.read_text("utf-8"), f"the page lacks this table:\n{table()}"


def run_check(name, method, architecture, tmp_path):
    """Run one check outside pytest's collection."""
    suite = SUITES[name.partition("_")[0]](method)()
    name, _, value = name.partition(" ")
    [test] = checks(name).values()
    given = {
        "self": lambda: suite,
        "subject": lambda: Subject.prompted(architecture, method, suite.options),
        "base": lambda: Subject(architecture, tiny_model(architecture)),
        "architecture": lambda: architecture,
        "side": lambda: value,
        "cache": lambda: value,
        "use_reentrant": lambda: value == "True",
        "whole": lambda: value == "True",
        "implementation": lambda: value,
        "tmp_path": lambda: tmp_path,
    }
    test(**{parameter: given[parameter]() for parameter in inspect.signature(test).parameters})


@pytest.mark.parametrize(
    ("mutate", "check", "method", "architecture"),
    [pytest.param(m, p, *on, marks=marks) for m, p, *lists in CASES for on, marks in each_once(*lists)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_mutation_is_noticed(mutate, check, method, architecture, tmp_path, monkeypatch):
    (tmp_path / "mutated").mkdir()
    if method not in METHODS and (check, method) not in SOUND:
        (tmp_path / "sound").mkdir()
        run_check(check, method, architecture, tmp_path / "sound")
        SOUND.add((check, method))
    mutate(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        run_check(check, method, architecture, tmp_path / "mutated")
