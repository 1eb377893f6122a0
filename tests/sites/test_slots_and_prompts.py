"""Slots in rows with their own prompts, with tasks, and together with prefixes."""

import dataclasses

import pytest
import torch
from texts_with_slots import (
    CAUSAL,
    TEXTS,
    TOKENS,
    WRITERS,
    base_logits,
    base_of,
    generate,
    made_of,
    seen,
    spoken,
    subject_and_words,
    with_slots,
)

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text


@pytest.mark.parametrize("architecture", WRITERS)
def test_another_prompt_in_every_row(architecture):
    """Rows fill their slots from their own prompt; one without a prompt has none and gives the base model's output."""
    subject, words = subject_and_words(architecture)
    subject.model.prompts.add("longer", "p_tuning", num_virtual_tokens=TOKENS + 3)
    longer = made_of(subject.model, "longer", 1)
    base = base_of(architecture)
    rows = ["longer", None, "default"]
    places = [{0: 7, 5: 0}, {}, {3: 4}]
    side = "left" if subject.is_causal else "right"
    ids, mask, slots = with_slots(places, side)
    table = torch.stack([longer[0], torch.zeros_like(longer[0]), torch.nn.functional.pad(words[0], (0, 3))])
    heard = spoken(ids, slots, table)
    logits = subject.logits(ids, mask, soft_slots=slots, prompts=rows)
    assert_equal(seen(logits, mask, subject), seen(base_logits(base, heard, mask), mask, base), "logits")
    by_index = subject.logits(ids, mask, soft_slots=slots, prompts=torch.tensor([1, -1, 0]))
    assert torch.equal(logits, by_index)
    for beams in (1, 2):
        text, _ = generate(subject, ids, mask, soft_slots=slots, prompts=rows, num_beams=beams)
        assert torch.equal(text, generate(base, heard, mask, num_beams=beams)[0]), f"{beams} beams"


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_two_prompts_of_a_row_are_counted_through(architecture):
    subject, words = subject_and_words(architecture)
    subject.model.prompts.add("second", "p_tuning", num_virtual_tokens=3)
    second = made_of(subject.model, "second", 1)
    ids, mask, slots = with_slots([{0: 7, 5: 4}, {1: 5}, {3: 6, 4: 0}])
    expected = base_logits(base_of(architecture), spoken(ids, slots, torch.cat([words, second], dim=1)), mask)
    logits = subject.logits(ids, mask, soft_slots=slots, prompts=[["default", "second"]] * 3)
    assert_equal(seen(logits, mask, subject), seen(expected, mask, subject), "logits")


class Tasks:
    """A method with a table of virtual tokens for each of two tasks."""

    NAME = "tasks_in_slots"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(zoo.MethodConfig):
        num_tasks: int = 2

    class Parameters(torch.nn.Module):
        def __init__(self, config, backbone):
            super().__init__()
            self.tables = torch.nn.Parameter(torch.empty(2, config.num_virtual_tokens, backbone.hidden_size))

        def initialize(self, config, backbone):
            with torch.no_grad():
                self.tables.copy_(backbone.embed(torch.arange(20, 20 + self.tables[..., 0].numel()).view(2, -1)))

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters):
        return zoo.InputTokens(parameters.tables)

    @zoo.hookimpl
    def inject(self, tokens):
        return zoo.Placement(tokens)

    @zoo.hookimpl
    def merge(self, parameters):
        return zoo.InputTokens(parameters.tables)


def test_every_row_fills_its_slots_for_its_own_task():
    zoo.register(Tasks())
    try:
        subject = Subject("llama", zoo.get_method("tasks_in_slots")(tiny_model("llama"), num_virtual_tokens=TOKENS))
        base = base_of("llama")
        words = torch.arange(20, 30).view(2, TOKENS)
        ids, mask, slots = with_slots(side="left")
        tasks = torch.tensor([1, 0, 1])
        heard = spoken(ids, slots, words[tasks])
        logits = subject.logits(ids, mask, soft_slots=slots, task_ids=tasks)
        assert_equal(logits[mask.bool()], base_logits(base, heard, mask)[mask.bool()], "logits")
        text, _ = generate(subject, ids, mask, soft_slots=slots, task_ids=tasks, num_beams=2)
        assert torch.equal(text, generate(base, heard, mask, num_beams=2)[0])
    finally:
        zoo.unregister("tasks_in_slots")


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_prefix_stands_in_front_of_a_text_with_slots(architecture):
    subject, words = subject_and_words(architecture)
    host = subject.model.prompts
    front = random_text(4, 50)
    host.add("prefix", "prefix_tuning", num_virtual_tokens=4)
    with torch.no_grad():
        for site, own in host["prefix"].learned.prefixes.items():
            own.embeddings.copy_(zoo.flatten_layers(host.backbone.keys_values(front[0]).sites[site]))
    base = base_of(architecture)
    ids, mask, slots = with_slots(side="left")
    heard = [text[keep.bool()][None] for text, keep in zip(spoken(ids, slots, words), mask, strict=True)]
    long_ids, long_mask = pad([torch.cat([front, text], dim=1) for text in heard], "left")
    expected = base_logits(base, long_ids, long_mask)[:, 4:]
    for order in (["prefix", "default"], ["default", "prefix"]):
        host.activate(*order)
        logits = subject.logits(ids, mask, soft_slots=slots)
        assert_equal(logits[mask.bool()], expected[mask.bool()], f"logits of {order}")
    text, _ = generate(subject, ids, mask, soft_slots=slots)
    assert torch.equal(text, generate(base, long_ids, long_mask)[0])


def test_an_encoders_prefix_works_beside_slots():
    """The oracle is the prefix alone, on the text with words in the slots."""
    for architecture in ("bert", "t5", "bart"):
        subject, words = subject_and_words(architecture)
        subject.model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=4)
        ids, mask, slots = with_slots()
        both = subject.logits(ids, mask, soft_slots=slots, prompts=[["prefix", "default"]] * 3)
        alone = subject.logits(spoken(ids, slots, words), mask, prompts="prefix")
        assert_equal(seen(both, mask, subject), seen(alone, mask, subject), f"{architecture}'s logits")


def test_prompts_that_come_and_go_between_calls_with_slots():
    """What eval mode keeps from one call is not used for another."""
    subject, words = subject_and_words("llama")
    subject.model.prompts.add("second", "prompt_tuning", num_virtual_tokens=3)
    second = made_of(subject.model, "second", 1)
    base = base_of("llama")
    ids, _, slots = (part[:1] for part in with_slots([{0: 1, 5: 2}, {}, {}]))
    cases = ((["default"], words), (["second"], second), (["second", "default"], second), (["default"], words))
    for names, own in cases:
        logits = subject.logits(ids, soft_slots=slots, prompts=[names])
        assert_equal(logits, base.logits(spoken(ids, slots, own)), f"logits of {names}")
    front = base.logits(torch.cat([words, TEXTS[1]], dim=1))[:, TOKENS:]
    assert_equal(subject.logits(TEXTS[1]), front, "the prompt in front, without slots")
