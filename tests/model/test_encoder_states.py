"""Encoder states passed back to the decoder: the same logits as in one forward, or a refusal."""

import pytest
import torch
from helpers.products import in_turns
from transformers.modeling_outputs import BaseModelOutput

import softprompt_zoo as zoo
from softprompt_zoo.sites import encoder_states
from softprompt_zoo.sites.stacks import decoder
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text

TEXTS = [random_text(length, seed) for seed, length in enumerate((9, 4))]
ANSWER = random_text(4, 7).expand(2, -1)
ARCHITECTURES = ["t5", "bart", "mbart", "pegasus", "marian", "led", "longt5", "t5gemma"]
WRITING = {"max_new_tokens": 4, "do_sample": False}


def subject_of(architecture, method="prompt_tuning"):
    subject = Subject.prompted(architecture, method, {"num_virtual_tokens": 4})
    subject.model.prompts.add("longer", "prompt_tuning", num_virtual_tokens=6)
    return subject


def again(subject, states, mask, wrap=BaseModelOutput, **more):
    """Decode from states of the encoder."""
    given = {"encoder_outputs": wrap(states), "attention_mask": mask, "decoder_input_ids": ANSWER, **more}
    with torch.no_grad():
        return subject.model(**given)


def check_states_of_a_forward(subject, side="right", **more):
    ids, mask = pad(TEXTS, side)
    first = subject.run(ids, mask, decoder_input_ids=ANSWER, **more)
    states = first.encoder_last_hidden_state
    assert states.shape[1] == ids.shape[1]
    second = again(subject, states, mask, **more)
    assert_equal(second.logits, first.logits, "logits from its states")
    third = again(subject, second.encoder_last_hidden_state, mask, **more)
    assert_equal(third.logits, first.logits, "logits from its states, given back twice")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_of_a_forward(architecture):
    check_states_of_a_forward(subject_of(architecture))


@pytest.mark.parametrize("method", ["p_tuning", "prefix_tuning", "p_tuning_v2"])
def test_every_method(method):
    check_states_of_a_forward(subject_of("t5", method), "left")


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_states_in_a_tuple(architecture):
    subject, text = subject_of(architecture), TEXTS[0].expand(2, -1)
    first = subject.run(text, decoder_input_ids=ANSWER, return_dict=False)
    second = again(subject, first[-1], None, wrap=lambda states: (states,), return_dict=False)
    assert_equal(second[0], first[0], "logits")


@pytest.mark.parametrize("rows", [["default", "longer"], [None, ["longer", "default"]], ["longer", "longer"]])
def test_another_prompt_in_every_row(rows):
    check_states_of_a_forward(subject_of("t5"), prompts=rows)


def test_the_check_notices_states_without_virtual_positions(monkeypatch):
    monkeypatch.setattr(decoder, "whole_states", lambda states, mask, call: (states, None))
    with pytest.raises(AssertionError):
        check_states_of_a_forward(subject_of("t5"))


@pytest.mark.parametrize("architecture", ["t5", "bart", "t5gemma"])
def test_states_of_the_encoder(architecture):
    """States are given as the encoder returns them, copied, and without a mask."""
    subject, text = subject_of(architecture), TEXTS[0].expand(2, -1)
    expected = subject.logits(text, decoder_input_ids=ANSWER)
    with torch.no_grad():
        states = subject.model.get_encoder()(input_ids=text).last_hidden_state
    for given, mask in ((states, None), (states, torch.ones_like(text)), (states.clone(), torch.ones_like(text))):
        assert_equal(again(subject, given, mask).logits, expected, "logits")


def test_shown_attentions_have_the_length_of_the_states_that_were_given():
    subject, text = Subject.prompted("t5", "prompt_tuning", {"num_virtual_tokens": 4}, "eager"), TEXTS[0].expand(2, -1)
    first = subject.run(text, decoder_input_ids=ANSWER, output_attentions=True)
    second = again(subject, first.encoder_last_hidden_state, torch.ones_like(text), output_attentions=True)
    for shown, expected in zip(second.cross_attentions, first.cross_attentions, strict=True):
        assert_equal(shown, expected, "cross-attention")


def test_the_decoder_by_itself():
    subject, text = subject_of("bart"), TEXTS[0].expand(2, -1)
    first = subject.run(text, decoder_input_ids=ANSWER, output_hidden_states=True)
    with torch.no_grad():
        decoder = subject.model.get_decoder()
        alone = decoder(input_ids=ANSWER, encoder_hidden_states=first.encoder_last_hidden_state).last_hidden_state
    assert_equal(alone, first.decoder_hidden_states[-1], "states of the decoder")


COPIES = {
    "a copy": lambda states: states.clone(),
    "rows": lambda states: states[[1, 0]],
    "another dtype and back": lambda states: states.double().float(),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_copies_of_the_texts_states_are_refused(architecture, copied):
    subject, text = subject_of(architecture), TEXTS[0].expand(2, -1)
    first = subject.run(text, decoder_input_ids=ANSWER)
    states, mask = copied(first.encoder_last_hidden_state), torch.ones_like(text)
    for given in (mask, None):
        with pytest.raises(zoo.UnsupportedError, match=r"states were given with 9 positions .* model.get_encoder\(\)"):
            again(subject, states, given)
        with pytest.raises(zoo.UnsupportedError, match="states were given with 9 positions"):
            subject.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=given, **WRITING
            )
    assert_equal(subject.logits(text, decoder_input_ids=ANSWER), first.logits, "logits after the refusal")


def test_states_of_other_prompts_are_refused():
    subject, (ids, mask) = subject_of("t5"), pad(TEXTS, "right")
    first = subject.run(ids, mask, decoder_input_ids=ANSWER, prompts=["default", "longer"])
    with pytest.raises(zoo.UnsupportedError, match=r"computed with \[4, 6\] virtual .* prompts have \[6, 4\]"):
        again(subject, first.encoder_last_hidden_state, mask, prompts=["longer", "default"])
    with pytest.raises(zoo.UnsupportedError, match=r"computed with \[4, 6\] virtual .* prompts have \[4, 4\]"):
        again(subject, first.encoder_last_hidden_state, mask)


def test_without_its_prompts_the_model_reads_the_states_that_it_is_given():
    subject, base, text = subject_of("t5"), Subject("t5", tiny_model("t5")), TEXTS[0].expand(2, -1)
    states = subject.run(text, decoder_input_ids=ANSWER).encoder_last_hidden_state
    expected = again(base, states, None).logits
    with subject.disabled():
        assert torch.equal(again(subject, states, None).logits, expected)


# generate


def check_generate(architecture, mask_is_given=True, **options):
    subject, (ids, mask) = subject_of(architecture), pad(TEXTS, "right") if mask_is_given else (TEXTS[0], None)
    options = {**WRITING, **options}
    expected = subject.generate(ids, mask, **options)
    with torch.no_grad():
        encoded = subject.model.get_encoder()(input_ids=ids, attention_mask=mask, prompts=options.get("prompts"))
        first = subject.run(ids, mask, decoder_input_ids=ANSWER[: len(ids)], prompts=options.get("prompts"))
    shown = BaseModelOutput(last_hidden_state=first.encoder_last_hidden_state)
    for outputs in (BaseModelOutput(last_hidden_state=encoded.last_hidden_state), shown):
        written = subject.model.generate(encoder_outputs=outputs, attention_mask=mask, **options)
        assert torch.equal(written, expected)
        assert outputs.last_hidden_state.shape[1] - ids.shape[1] in (0, 4, 6), "what the user gave has changed"


@in_turns(
    architecture=["t5", "bart"], options=[{}, {"num_beams": 3}, {"prompts": ["longer", "default"], "num_beams": 2}]
)
def test_generate_from_states(architecture, options):
    check_generate(architecture, **options)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_generate_from_states_without_a_mask(architecture):
    check_generate(architecture, mask_is_given=False)


def test_the_check_of_generate_notices_states_without_virtual_positions(monkeypatch):
    monkeypatch.setattr(decoder, "whole_states", lambda states, mask, call: (states, None))
    monkeypatch.setattr(encoder_states, "whole_states", lambda states, mask, call: (states, None))
    with pytest.raises(AssertionError):
        check_generate("t5")


def test_what_generate_shows_has_the_length_of_the_text():
    subject, text = Subject.prompted("t5", "prompt_tuning", {"num_virtual_tokens": 4}, "eager"), TEXTS[0].expand(2, -1)
    shown = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True, **WRITING}
    first = subject.generate(text, **shown)
    outputs = BaseModelOutput(first.encoder_hidden_states[-1], first.encoder_hidden_states, first.encoder_attentions)
    second = subject.model.generate(encoder_outputs=outputs, **shown)
    assert torch.equal(second.sequences, first.sequences)
    for name in ("encoder_hidden_states", "encoder_attentions"):
        for given, expected in zip(second[name], first[name], strict=True):
            assert torch.equal(given, expected), name
    for given, expected in zip(second.cross_attentions[-1], first.cross_attentions[-1], strict=True):
        assert_equal(given, expected, "cross-attention")
