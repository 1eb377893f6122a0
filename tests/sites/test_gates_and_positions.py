"""Text with gated tokens, which take up no positions, stands where the base model puts it, except for padding."""

import pytest
import torch
from helpers.gated_method import PLUGIN, attach

import softprompt_zoo as zoo
from softprompt_zoo.sites import positions as where
from softprompt_zoo.sites.positions import text_positions
from softprompt_zoo.testing import conformance_suite, tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text

TEXT = random_text(7, 3)
HOLES = torch.tensor([[1, 0, 1, 1, 0, 0, 1]])
ROTARY = ["llama", "gemma3", "mistral", "modernbert", "eurobert"]


@pytest.fixture(autouse=True)
def gated():
    zoo.register(PLUGIN)
    yield
    zoo.unregister("gated_test")


def suite():
    """Return the tests of promise 3: where the base model's queries are rotated, those of gated tokens are, too."""
    zoo.register(PLUGIN)
    try:
        return conformance_suite("gated_test", architectures=["modernbert", "eurobert", "t5gemma"], promises=[3])
    finally:
        zoo.unregister("gated_test")


TestPadding = suite()


def base_and_closed(architecture, value=0.0):
    return Subject(architecture, tiny_model(architecture)), Subject(architecture, attach(architecture, value))


def check_holes(architecture):
    base, closed = base_and_closed(architecture)
    seen = slice(None) if base.is_encoder_decoder else HOLES[0].bool()
    assert torch.equal(closed.logits(TEXT, HOLES)[:, seen], base.logits(TEXT, HOLES)[:, seen])


@pytest.mark.parametrize("architecture", ["gpt2", *ROTARY, "opt", "bert", "roberta", "t5", "bart", "t5gemma"])
def test_a_closed_gate_is_the_base_model_with_holes_in_the_mask(architecture):
    """Bit for bit, as PEFT asserts; OPT counts positions in the mask, RoBERTa in the ids, others in the columns."""
    check_holes(architecture)


def check_padding_on_the_left(architecture):
    base, closed = base_and_closed(architecture)
    ids, mask = pad([TEXT, random_text(4, 5)], "left", extra=2)
    expected = base.logits(ids, mask)
    assert_equal(closed.logits(ids, mask)[mask.bool()], expected[mask.bool()], "logits")


@pytest.mark.parametrize("architecture", [*ROTARY, "opt"])
def test_a_closed_gate_is_the_base_model_behind_padding_where_that_does_not_count_it(architecture):
    """Without `position_ids`."""
    check_padding_on_the_left(architecture)


def check_rows(architecture):
    """Check that rows with an open gate, a prefix or no prompt, with holes and padding, give what each gives alone."""
    base, subject = base_and_closed(architecture, 0.7)
    subject.model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=3)
    names, ids = ["default", "prefix", None, ["default", "prefix"]], torch.cat([TEXT, TEXT.flip(1)] * 2)
    masks = HOLES.repeat(4, 1)
    padded = [torch.cat([torch.zeros(4, 2, dtype=torch.long), part], dim=1) for part in (ids, masks)]
    batch = subject.logits(*padded, prompts=names)[:, 2:]
    for row, name in enumerate(names):
        alone = subject.logits(ids[row : row + 1], HOLES, prompts=[name])[0]
        assert_equal(batch[row][HOLES[0].bool()], alone[HOLES[0].bool()], f"row {row} with {name}")
    plain = base.logits(ids[2:3], HOLES)[0]
    assert_equal(batch[2][HOLES[0].bool()], plain[HOLES[0].bool()], "the row without a prompt")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "modernbert"])
def test_rows_with_holes_beside_rows_with_a_prefix(architecture):
    check_rows(architecture)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_token_by_token_behind_padding_and_holes(architecture):
    _, subject = base_and_closed(architecture, 0.7)
    ids, mask = torch.cat([TEXT, TEXT], dim=1), torch.cat([torch.tensor([[0, 0]]), HOLES, torch.ones(1, 5)], 1).long()
    whole, cache = subject.logits(ids, mask), None
    for end in (9, 10, 12, 14):
        start = 0 if cache is None else cache.get_seq_length()
        step = subject.run(ids[:, start:end], mask[:, :end], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        assert_equal(step.logits[:, -1], whole[:, end - 1], f"token {end - 1}")


def columns(stack, kwargs, length, past, device):
    return text_positions({}, length, past, device)


def counted(stack, kwargs, length, past, device):
    return text_positions(kwargs, length, past, device)


@pytest.mark.parametrize(
    ("instead", "check", "architecture"),
    [
        (counted, check_holes, "llama"),
        (counted, check_holes, "roberta"),
        (counted, check_rows, "llama"),
        (columns, check_rows, "modernbert"),
        (columns, check_holes, "opt"),
    ],
)
def test_the_checks_notice_other_positions(instead, check, architecture, monkeypatch):
    monkeypatch.setattr(where, "own_positions", instead)
    with pytest.raises(AssertionError):
        check(architecture)
