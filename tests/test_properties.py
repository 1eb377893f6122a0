"""Random batches: each row gives what it gives alone, without padding (promises 3 and 10)."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.checks import BASE_DEPENDS_ON_PADDING
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import DECODER_LENGTH, Subject, pad, random_text

ARCHITECTURES = ["llama", "gpt2", "gemma3", "bloom", "gptj", "bert", "t5", "bart"]
"""bloom and gptj are reached through their cache."""
METHODS = ["prompt_tuning", "prefix_tuning", "p_tuning_v2"]
WITH_GATES = ["llama", "gpt2", "gemma3"]
"""Architectures where gated tokens are not refused; `llama_adapter` makes them."""
LENGTHS = [1, 2, 5, 8]
"""Lengths of prompts; gemma3's window is 6."""
LONGEST_TEXT = 12
SEEDS = st.integers(0, 1000)


def names(architecture):
    """Return the prompts of a model: one of every method and length."""
    methods = [*METHODS, "llama_adapter"] if architecture in WITH_GATES else METHODS
    return [f"{method}_{length}" for method in methods for length in LENGTHS]


def batches(architecture):
    name = st.sampled_from(names(architecture))
    prompts = st.one_of(st.none(), name, st.lists(name, min_size=1, max_size=3, unique=True))
    row = st.tuples(st.integers(1, LONGEST_TEXT), SEEDS, prompts)
    rows = st.lists(row, min_size=1, max_size=5)
    return st.tuples(st.just(architecture), rows, st.sampled_from(["left", "right"]), st.integers(0, 4))


batch = st.sampled_from(ARCHITECTURES).flatmap(batches)


@functools.cache
def subject(architecture):
    """Return a model with a prompt of every method and length."""
    torch.manual_seed(0)
    model = tiny_model(architecture)
    for name in names(architecture):
        method, _, length = name.rpartition("_")
        if hasattr(model, "prompts"):
            model.prompts.add(name, method, num_virtual_tokens=int(length))
        else:
            model = zoo.get_method(method)(model, num_virtual_tokens=int(length), name=name)
        Subject(architecture, model).disturb(name)
    return Subject(architecture, model)


@functools.cache
def base(architecture):
    return Subject(architecture, tiny_model(architecture))


def decoder_text(rows):
    """Return the text of an encoder-decoder's decoder, a different one in every row."""
    return torch.cat([random_text(DECODER_LENGTH, 300 + row) for row in range(rows)])


def check(architecture, rows, side, extra):
    tried = subject(architecture)
    is_bare = all(entry is None for *_, entry in rows)
    if (architecture, side) in BASE_DEPENDS_ON_PADDING or (is_bare and tried.is_causal):
        side = "right"  # without any prompt a forward is the base model's, which may count left padding as text
    texts = [random_text(length, seed) for length, seed, _ in rows]
    prompts = [entry for *_, entry in rows]
    ids, mask = pad(texts, side, extra)
    more = {"decoder_input_ids": decoder_text(len(rows))} if tried.is_encoder_decoder else {}
    logits = tried.logits(ids, mask, prompts=prompts, **more)
    for place, (text, entry) in enumerate(zip(texts, prompts, strict=True)):
        own = {name: value[place : place + 1] for name, value in more.items()}
        alone = tried.logits(text, prompts=[entry], **own)[0]
        found = logits[place] if tried.is_encoder_decoder else logits[place][mask[place].bool()]
        assert_equal(found, alone, f"row {place} with {entry}")
        bare = base(architecture).logits(text, **own)[0]
        if entry is None:
            assert_equal(found, bare, f"row {place} without a prompt")
        else:
            assert not torch.allclose(found, bare, atol=1e-3), f"the prompt of row {place} has no effect"


limits = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=40, **limits)
@given(batch)
def test_each_row_gives_what_it_gives_alone(llama_adapter, drawn):
    check(*drawn)


@pytest.mark.slow
@settings(max_examples=2000, **limits)
@given(batch)
def test_each_row_gives_what_it_gives_alone_at_length(llama_adapter, drawn):
    check(*drawn)
