"""Virtual tokens inside the text, made of real words, generate what the base model generates for these words."""

import pytest
import torch
from helpers.products import in_turns
from texts_with_slots import (
    CAUSAL,
    METHODS,
    NEW_TOKENS,
    TEXTS,
    WRITERS,
    base_of,
    generate,
    spoken,
    subject_and_words,
    with_slots,
)

from softprompt_zoo.testing.comparison import assert_equal


@in_turns(architecture=WRITERS, method=METHODS)
def test_generation_is_that_of_the_words(architecture, method):
    """Cached, uncached, with a static cache, and by repeated forward; padded on the left."""
    subject, words = subject_and_words(architecture, method)
    base = base_of(architecture)
    ids, mask, slots = with_slots(side="left" if subject.is_causal else "right")
    expected, expected_logits = generate(base, spoken(ids, slots, words), mask)
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        text, logits = generate(subject, ids, mask, soft_slots=slots, **options)
        assert torch.equal(text, expected), options
        assert_equal(logits, expected_logits, f"logits with {options}")
    for step in range(NEW_TOKENS):
        new = expected[:, :step]
        if subject.is_causal:
            more = torch.cat([ids, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)
            logits = subject.logits(*more, soft_slots=torch.cat([slots, torch.full_like(new, -1)], dim=1))
        else:
            start = torch.zeros(3, 1, dtype=torch.long)
            logits = subject.logits(ids, mask, soft_slots=slots, decoder_input_ids=torch.cat([start, new], dim=1))
        assert_equal(logits[:, -1], expected_logits[:, step], f"token {step} by a forward over the whole text")


@in_turns(
    ids=str,
    options=[
        {"num_beams": 3},
        {"num_beams": 3, "use_cache": False},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    ],
    architecture=WRITERS,
)
def test_beams_and_samples_are_those_of_the_words(architecture, options):
    subject, words = subject_and_words(architecture)
    base = base_of(architecture)
    ids, mask, slots = with_slots(side="left" if subject.is_causal else "right")
    torch.manual_seed(0)
    expected, _ = generate(base, spoken(ids, slots, words), mask, **options)
    torch.manual_seed(0)
    text, _ = generate(subject, ids, mask, soft_slots=slots, **options)
    assert torch.equal(text, expected)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_assisted_decoding_and_prompt_lookup(architecture):
    subject, words = subject_and_words(architecture)
    base = base_of(architecture)
    ids, mask, slots = (part[:1] for part in with_slots())
    expected, _ = generate(base, spoken(ids, slots, words), mask)
    for options in ({"assistant_model": base.model}, {"prompt_lookup_num_tokens": 2}):
        assert torch.equal(generate(subject, ids, mask, soft_slots=slots, **options)[0], expected), options


@pytest.mark.parametrize("architecture", CAUSAL)
def test_prefill_in_chunks(architecture):
    subject, words = subject_and_words(architecture)
    ids, mask, slots = with_slots(side="left")
    expected, logits = generate(base_of(architecture), spoken(ids, slots, words), mask)
    text, chunked = generate(subject, ids, mask, soft_slots=slots, prefill_chunk_size=4)
    assert torch.equal(text, expected)
    assert_equal(chunked, logits, "logits")


@pytest.mark.parametrize("architecture", CAUSAL)
def test_step_by_step_with_a_cache(architecture):
    """The slots cover the text from its first token, so every step sees its own."""
    subject, _ = subject_and_words(architecture)
    ids, _, slots = (part[:1] for part in with_slots())
    full = subject.logits(ids, soft_slots=slots)
    cache = None
    for step in range(ids.shape[1]):
        output = subject.run(
            ids[:, step : step + 1], soft_slots=slots[:, : step + 1], past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        assert_equal(output.logits[:, 0], full[:, step], f"step {step}")


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_second_turn_goes_on_from_the_cache(architecture):
    subject, words = subject_and_words(architecture)
    ids, mask, slots = (part[:1] for part in with_slots())
    first = subject.model.generate(
        ids, attention_mask=mask, soft_slots=slots, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    text = torch.cat([first.sequences, TEXTS[1]], dim=1)
    slots = torch.nn.functional.pad(slots, (0, text.shape[1] - slots.shape[1]), value=-1)
    slots[0, -2] = 4
    everything = spoken(text, slots, words), torch.ones_like(text)
    expected, logits = generate(base_of(architecture), *everything)
    ours, our_logits = generate(
        subject, text, torch.ones_like(text), soft_slots=slots, past_key_values=first.past_key_values
    )
    assert torch.equal(ours, expected)
    assert_equal(our_logits, logits, "logits")
