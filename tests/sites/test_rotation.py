"""Models that rotate all positions of a long text differently from those of a short one: longrope, dynamic NTK.

The oracle is the base model on real words in front of the same text, called in the same way.
"""

import copy

import pytest
import torch
import transformers
from helpers.products import in_turns

import softprompt_zoo as zoo
from softprompt_zoo.sites import decoding_state
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import pad, random_text
from softprompt_zoo.trial import rehearsal

LIMIT = 16
SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": None,
}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 5.0, 6.0, 7.0]}
ORIGINAL = {"original_max_position_embeddings": LIMIT}


def longrope(**more):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, **FACTORS, **ORIGINAL, **more}
    return {"max_position_embeddings": 128, "rope_parameters": rope, **SIZES}  # a new one: configs write into it


def dynamic():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    return {"max_position_embeddings": LIMIT, "rope_parameters": rope, **SIZES}


def _phimoe():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    scales = {"short_mscale": 1.1, "long_mscale": 1.3}
    return transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**ORIGINAL, **experts, **longrope(**scales)))


MODELS = {
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**ORIGINAL, **longrope())),
    "phimoe": _phimoe,
    "llama-longrope": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**longrope())),
    "llama-dynamic": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**dynamic())),
    "nemotron-dynamic": lambda: transformers.NemotronForCausalLM(transformers.NemotronConfig(**dynamic())),
}
DROPPING = ["phi3", "phimoe"]
"""Models that drop their cache when a text becomes long."""
LENGTHS = [8, 13, 30]
"""Lengths of a text that stays within the limit after four words, one that crosses it with them, and one beyond it."""
WORDS = random_text(4, 1)


def base_model(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.3)
    return model.eval()


def made_of_words(name, words=WORDS):
    model = zoo.get_method("prompt_tuning")(base_model(name), num_virtual_tokens=words.shape[1])
    fill(model, "default", words)
    return model


def fill(model, prompt, words):
    with torch.no_grad():
        model.prompts[prompt].learned.embeddings.copy_(model.prompts.backbone.embed(words[0]))


@torch.no_grad()
def check_forward(name, length):
    text = random_text(length, 2)
    model, base = made_of_words(name), base_model(name)
    expected = base(torch.cat([WORDS, text], dim=1)).logits[:, 4:]
    assert_equal(model(text).logits, expected, f"a text of {length}")
    assert_equal(model(text[:, :5]).logits, base(torch.cat([WORDS, text[:, :5]], dim=1)).logits[:, 4:], "a short one")


@in_turns(name=MODELS, length=LENGTHS)
def test_words_give_what_they_are_at_every_length(name, length):
    check_forward(name, length)


@torch.no_grad()
def check_steps(name):
    """Check a loop with its own cache, from a short text to a long one."""
    text = random_text(30, 2)
    model, base = made_of_words(name), base_model(name)
    step = model(text[:, :8], use_cache=True)
    expected = base(torch.cat([WORDS, text[:, :8]], dim=1), use_cache=True)
    for place in range(8, 26, 3):
        model(text[:, :20])  # another text in between, computed with the other rotation
        base(torch.cat([WORDS, text[:, :20]], dim=1))
        ids = text[:, place : place + 3]
        step = model(ids, past_key_values=copy.deepcopy(step.past_key_values))
        expected = base(ids, past_key_values=expected.past_key_values)
        assert_equal(step.logits, expected.logits, f"step at {place}")


@pytest.mark.parametrize("name", MODELS)
def test_a_text_that_grows_with_its_cache(name):
    check_steps(name)


def check_base(name):
    """Skip if the base model continues without its text once it has dropped its cache, as in transformers 5.15."""
    with torch.no_grad():
        written = base_model(name).generate(WORDS, max_new_tokens=LIMIT, do_sample=False)
        at_once = base_model(name).generate(WORDS, max_new_tokens=LIMIT, do_sample=False, use_cache=False)
    if name in DROPPING and not torch.equal(written, at_once):
        pytest.skip("the base model loses its text in this version of transformers")


def check_generate(name, **arguments):
    check_base(name)
    text, count = random_text(6, 2), 14
    arguments = {"max_new_tokens": count, "do_sample": False, "disable_compile": True, **arguments}
    arguments |= {"return_dict_in_generate": True, "output_logits": True}
    written = made_of_words(name).generate(text, **arguments)
    expected = base_model(name).generate(torch.cat([WORDS, text], dim=1), **arguments)
    assert torch.equal(written.sequences[:, 6:], expected.sequences[:, 10:])
    assert_equal(torch.cat(written.logits), torch.cat(expected.logits), "the logits of all steps")


@in_turns(name=MODELS, arguments=[{}, {"use_cache": False}, {"num_beams": 2}])
def test_generate_writes_what_it_writes_behind_words(name, arguments):
    check_generate(name, **arguments)


@pytest.mark.parametrize("name", MODELS)
def test_a_second_turn_on_a_returned_cache(name):
    def two_turns(model, text):
        arguments = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        first = model.generate(text, max_new_tokens=3, **arguments)
        told = torch.cat([first.sequences, random_text(3, 8)], dim=1)
        return model.generate(told, past_key_values=first.past_key_values, max_new_tokens=5, **arguments)

    check_base(name)
    text = random_text(5, 2)
    found, expected = two_turns(made_of_words(name), text), two_turns(base_model(name), torch.cat([WORDS, text], dim=1))
    assert torch.equal(found.sequences[:, 5:], expected.sequences[:, 9:])
    assert_equal(torch.cat(found.logits), torch.cat(expected.logits), "the second turn")


@pytest.mark.parametrize("name", ["phi3", "llama-longrope"])
def test_generate_with_a_static_cache(name):
    check_generate(name, cache_implementation="static")


@in_turns(name=MODELS, side=["left", "right"])
def test_rows_of_several_lengths_take_the_rotation_of_the_longest(name, side):
    model, base = made_of_words(name), base_model(name)
    model.prompts.add("longer", "prompt_tuning", num_virtual_tokens=6)
    other = random_text(6, 7)
    fill(model, "longer", other)
    texts = [random_text(13, 3), random_text(5, 4), random_text(9, 5)]
    fronts = [WORDS, other, WORDS[:, :0]]
    ids, mask = pad(texts, side)
    words, seen = pad([torch.cat(pair, dim=1) for pair in zip(fronts, texts, strict=True)], "right")
    with torch.no_grad():
        found = model(ids, attention_mask=mask, prompts=["default", "longer", None]).logits
        expected = base(words, attention_mask=seen).logits
    for row, (front, text) in enumerate(zip(fronts, texts, strict=True)):
        start = front.shape[1]
        own = found[row][mask[row].bool()]
        assert_equal(own, expected[row, start : start + text.shape[1]], f"row {row}")


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_words_embeddings(name):
    model, base = made_of_words(name), base_model(name)
    text = random_text(13, 2)
    model(text, labels=text).loss.backward()
    embeddings = base.get_input_embeddings()(torch.cat([WORDS, text], dim=1)).detach().requires_grad_()
    labels = torch.cat([torch.full_like(WORDS, -100), text], dim=1)
    base(inputs_embeds=embeddings, labels=labels).loss.backward()
    assert_equal(model.prompts["default"].learned.embeddings.grad, embeddings.grad[0, :4], "gradients")


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "p_tuning_v2"])
@pytest.mark.parametrize("name", DROPPING)
def test_a_model_that_drops_its_cache_counts_the_prompt(name, method):
    """A text then continues as if computed all at once; transformers counts only the text's tokens."""
    check_with_and_without_cache(name, method)


def check_with_and_without_cache(name, method):
    model = zoo.get_method(method)(base_model(name), num_virtual_tokens=4)
    arguments = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    written = model.generate(random_text(8, 2), **arguments)
    for place, logits in enumerate(written.logits, start=8):
        with torch.no_grad():
            at_once = model(written.sequences[:, :place], use_cache=False).logits[:, -1]
        assert_equal(logits, at_once, f"the step at {place}")


def test_folding_what_has_no_one_rotation_is_refused():
    model = made_of_words("phi3")
    before = list(model.state_dict())
    with pytest.raises(zoo.UnsupportedError, match=r"rotates all positions differently .* longer than 16 tokens"):
        zoo.fold(model)
    assert list(model.state_dict()) == before
    assert model.prompts.active == ("default",)
    model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=3)
    zoo.fold(model, ["prefix"])


def forget_the_text(monkeypatch):
    monkeypatch.setattr(decoding_state, "_reach", lambda state, positions, past: None)


def follow_the_text_as_it_grows(monkeypatch):
    monkeypatch.setattr(decoding_state, "_reach", lambda state, positions, past: positions.max())


@pytest.mark.parametrize("name", MODELS)
def test_the_checks_notice_the_rotation_of_a_short_text(name, monkeypatch):
    monkeypatch.setattr(rehearsal, "_try_long_text", lambda rehearsed, ids: None)
    forget_the_text(monkeypatch)
    with pytest.raises(AssertionError):
        check_forward(name, 13)


@pytest.mark.parametrize("name", ["llama-longrope", "llama-dynamic"])
def test_the_check_of_steps_notices_prompts_that_follow_the_text(name, monkeypatch):
    follow_the_text_as_it_grows(monkeypatch)
    with pytest.raises(AssertionError):
        check_steps(name)


def test_the_check_notices_a_rule_that_counts_the_text_alone(monkeypatch):
    place = "softprompt_zoo.model.generation.PromptedGeneration._counting_prompts"
    monkeypatch.setattr(place, lambda self, cache: self)
    for method in ("prompt_tuning", "prefix_tuning"):
        with pytest.raises(AssertionError):
            check_with_and_without_cache("phi3", method)


@pytest.mark.parametrize("name", MODELS)
def test_attaching_tries_a_long_text(name, monkeypatch):
    forget_the_text(monkeypatch)
    monkeypatch.setattr(rehearsal, "_FOUND", {})
    base = base_model(name)
    expected = base(WORDS).logits
    with pytest.raises(zoo.UnsupportedError, match="in texts of more than 16 tokens"):
        zoo.get_method("prompt_tuning")(base, num_virtual_tokens=4)
    assert torch.equal(base(WORDS).logits, expected)
    zoo.get_method("prefix_tuning")(base, num_virtual_tokens=4)
