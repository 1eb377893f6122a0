"""Slots that do not fit the text or the prompts are refused."""

import pytest
import torch
from texts_with_slots import TOKENS, base_of, generate, subject_and_words, with_slots

from softprompt_zoo.testing.subject import Subject


def change(slots, row, column, value):
    slots = slots.clone()
    slots[row, column] = value
    return slots


SHAPE = "give one entry for each token of the text from the first on, like attention_mask"
WRONG = {
    "too large": (lambda s: change(s, 1, 2, 5), "row 1 of soft_slots uses virtual token 5, but its prompts have 5 at"),
    "too small": (lambda s: change(s, 2, 1, -100), "row 2 of soft_slots has -100; expected a virtual token's index"),
    "short": (lambda s: s[:, :-1], rf"soft_slots has shape \(3, 8\) for 3 rows of 9 tokens; {SHAPE}"),
    "long": (lambda s: torch.cat([s, s], 1), rf"soft_slots has shape \(3, 18\) for 3 rows of 9 tokens; {SHAPE}"),
    "one row": (lambda s: s[:1], rf"soft_slots has shape \(1, 9\) for 3 rows of 9 tokens; {SHAPE}"),
    "no rows": (lambda s: s[:0], rf"soft_slots has shape \(0, 9\) for 3 rows of 9 tokens; {SHAPE}"),
    "one axis": (lambda s: s[0], r"soft_slots has shape \(9,\) and dtype torch.int64; expected integers of shape"),
    "numbers": (lambda s: s.float(), "dtype torch.float32; expected integers of shape"),
    "flags": (lambda s: s >= 0, "dtype torch.bool; expected integers of shape"),
}


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_slots_in_forward(architecture, mistake):
    spoil, text = WRONG[mistake]
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match=text):
        subject.run(ids, mask, soft_slots=spoil(slots))


@pytest.mark.parametrize("architecture", ["llama", "t5"])
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_slots_in_generate(architecture, mistake):
    spoil, text = WRONG[mistake]
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match=text):
        generate(subject, ids, mask, soft_slots=spoil(slots))


def test_slots_that_are_a_list():
    subject, _ = subject_and_words("llama")
    ids, mask, slots = with_slots()
    with pytest.raises(TypeError, match="soft_slots is list; expected integers of shape"):
        subject.run(ids, mask, soft_slots=slots.tolist())
    with pytest.raises(TypeError, match="soft_slots is list; expected integers of shape"):
        generate(subject, ids, mask, soft_slots=slots.tolist())


def test_slots_of_the_new_tokens_alone():
    """A step with a cache would otherwise read them as those of the first tokens."""
    subject, _ = subject_and_words("llama")
    ids, _, slots = (part[:1] for part in with_slots())
    cache = subject.run(ids[:, :4], soft_slots=slots[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"shape \(1, 1\) for 1 rows of 5 tokens, 4 of them in the cache"):
        subject.run(ids[:, 4:5], soft_slots=slots[:, 4:5], past_key_values=cache)
    with pytest.raises(ValueError, match="row 0 of soft_slots uses virtual token 9, but its prompts have 5 at"):
        subject.run(ids[:, 4:5], soft_slots=change(slots[:, :5], 0, 4, 9), past_key_values=cache)


@pytest.mark.parametrize("rows", [["default", None, "default"], [None, None, None]])
def test_a_slot_in_a_row_without_a_prompt(rows):
    subject, _ = subject_and_words("llama")
    ids, mask, slots = with_slots([{}, {3: 0}, {}])
    with pytest.raises(ValueError, match="row 1 of soft_slots uses virtual token 0, but its prompts have 0 at"):
        subject.run(ids, mask, soft_slots=slots, prompts=rows)


def test_slots_for_a_method_without_input_tokens():
    subject = Subject.prompted("llama", "prefix_tuning", {"num_virtual_tokens": TOKENS})
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match="but its prompts have 0 at the input embeddings"):
        subject.run(ids, mask, soft_slots=slots)


def test_no_prompt_is_active():
    subject, _ = subject_and_words("llama")
    subject.model.prompts.activate()
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match="its prompts have 0 at the input embeddings"):
        subject.run(ids, mask, soft_slots=slots)
    expected = base_of("llama").logits(ids, mask)
    assert torch.equal(subject.logits(ids, mask, soft_slots=torch.full_like(slots, -1)), expected)
