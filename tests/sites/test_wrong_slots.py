"""Slots that do not fit the text or the prompts are refused."""

import pytest
import torch
from texts_with_slots import PLACEHOLDER, TEXTS, TOKENS, base_of, generate, subject_and_words, with_slots

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.models import CLASSIFICATION
from softprompt_zoo.testing.subject import Subject


def change(slots, row, column, value):
    slots = slots.clone()
    slots[row, column] = value
    return slots


SHAPE = "give one entry for each token of the text, starting with the first, like attention_mask"
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


@pytest.mark.parametrize(
    ("call", "architecture"),
    [*((Subject.run, name) for name in ("llama", "bert", "t5")), *((generate, name) for name in ("llama", "t5"))],
)
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_slots(call, architecture, mistake):
    spoil, text = WRONG[mistake]
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    with pytest.raises(ValueError, match=text):
        call(subject, ids, mask, soft_slots=spoil(slots))


def test_slots_that_are_a_list():
    subject, _ = subject_and_words("llama")
    ids, mask, slots = with_slots()
    with pytest.raises(TypeError, match="soft_slots is list; expected integers of shape"):
        subject.run(ids, mask, soft_slots=slots.tolist())
    with pytest.raises(TypeError, match="soft_slots is list; expected integers of shape"):
        generate(subject, ids, mask, soft_slots=slots.tolist())


def test_slots_of_the_new_tokens_alone():
    """A step with a cache would otherwise read them as the slots of the first tokens."""
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


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_guidance_reads_a_second_text_without_slots(architecture):
    """The second text is the last token or a negative prompt; it would be read with the slots of the first text."""
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = (part[:1] for part in with_slots())
    for options in ({}, {"negative_prompt_ids": TEXTS[1]}):
        with pytest.raises(
            zoo.UnsupportedError, match="generate runs the model on a second text, as with guidance_scale"
        ):
            generate(subject, ids, mask, soft_slots=slots, guidance_scale=2.0, **options)
    generate(subject, ids, mask, guidance_scale=2.0)
    with subject.model.prompts.disabled():
        text, _ = generate(subject, ids, mask, soft_slots=slots, guidance_scale=2.0)
    assert torch.equal(text, generate(base_of(architecture), ids, mask, guidance_scale=2.0)[0])


def test_slots_need_a_text():
    """Without a text, generate starts from one token; later slots would stand in the generated text."""
    subject, _ = subject_and_words("llama")
    with pytest.raises(ValueError, match=r"soft_slots has shape \(1, 2\) for 0 rows of 0 tokens"):
        subject.model.generate(soft_slots=torch.tensor([[0, 1]]), bos_token_id=1, max_new_tokens=2)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_decoder_that_reads_the_text_once_more_has_no_slots(architecture):
    """The decoder would see the placeholder ids."""
    model = zoo.get_method("prompt_tuning")(tiny_model(architecture, task=CLASSIFICATION), num_virtual_tokens=TOKENS)
    slots = torch.tensor([[0, 1, -1, 3, -1, -1]])
    ids = torch.tensor([[PLACEHOLDER, PLACEHOLDER, 9, PLACEHOLDER, 11, model.config.eos_token_id]])
    with pytest.raises(zoo.UnsupportedError, match=r"virtual tokens into a text that the decoder of .* also reads"):
        model(input_ids=ids, soft_slots=slots)
    with torch.no_grad():
        plain = model(input_ids=ids, prompts=[None]).logits
        assert torch.equal(model(input_ids=ids, soft_slots=torch.full_like(slots, -1)).logits, plain)
        held = [ids.masked_fill(slots >= 0, placeholder) for placeholder in (PLACEHOLDER, 8)]
        read = [model(input_ids=text, soft_slots=slots, decoder_input_ids=ids).logits for text in held]
    assert torch.equal(*read)
