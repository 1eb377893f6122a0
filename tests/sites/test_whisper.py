"""An encoder of sound: prompts on Whisper's encoder, decoder and cross-attention."""

import pytest
import torch
from transformers import GenerationMixin, WhisperForCausalLM, WhisperForConditionalGeneration

import softprompt_zoo as zoo
from softprompt_zoo.testing import conformance_suite, tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text

TestPrefixes = conformance_suite("prefix_tuning", architectures=["whisper"], promises=(1, 2, 4, 5, 6, 7, 10, 11))
TEXTS = torch.cat([random_text(9, seed) for seed in range(3)])


@pytest.mark.parametrize("site", ["encoder", "decoder", "cross"])
def test_every_site_acts_alone(site):
    subject = Subject.prompted("whisper", "prefix_tuning", {"num_virtual_tokens": 4, "sites": (site,)})
    base = Subject("whisper", tiny_model("whisper"))
    assert not torch.allclose(subject.logits(TEXTS), base.logits(TEXTS), atol=1e-2)
    subject.loss(TEXTS).backward()
    assert all(gradient.abs().max() > 0 for gradient in subject.gradients().values())


def test_padding_of_the_decoders_text():
    """Padding is on either side, and the positions are the text's own."""
    subject = Subject.prompted("whisper", "prefix_tuning", {"num_virtual_tokens": 4})
    text = random_text(6, 7)
    expected = subject.logits(TEXTS[:1], decoder_input_ids=text)
    for side in ("left", "right"):
        place = slice(3, None) if side == "left" else slice(0, 6)
        ids, mask = torch.zeros(1, 9, dtype=torch.long), torch.zeros(1, 9, dtype=torch.long)
        ids[:, place], mask[:, place] = text, 1
        logits = subject.logits(TEXTS[:1], decoder_input_ids=ids, decoder_attention_mask=mask)
        assert_equal(logits[:, place], expected, side)


def test_a_prefix_longer_than_the_sound():
    subject = Subject.prompted("whisper", "prefix_tuning", {"num_virtual_tokens": 23})
    assert torch.isfinite(subject.logits(TEXTS)).all()


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_tokens_have_no_place_before_sound(method):
    model = tiny_model("whisper")
    with pytest.raises(zoo.UnsupportedError, match=r"reads sound and no tokens; choose a method on keys and values"):
        zoo.get_method(method)(model, num_virtual_tokens=4)
    assert not hasattr(model, "prompts")


def test_prompts_for_another_number_of_rows():
    subject = Subject.prompted("whisper", "prefix_tuning", {"num_virtual_tokens": 4})
    with pytest.raises(ValueError, match="2 entries for a batch of 3 rows"):
        subject.logits(TEXTS, prompts=["default", None])
    with pytest.raises(ValueError, match="2 entries for a batch of 3 rows"):
        subject.generate(TEXTS, prompts=["default", None])


def test_rows_that_are_done_before_others(monkeypatch):
    """Whisper's own `generate` continues without them if the sound is long."""

    def long(self, features, **options):
        GenerationMixin.generate(self, features, **options)
        return GenerationMixin.generate(self, features[1:], **options)

    monkeypatch.setattr(WhisperForConditionalGeneration, "generate", long)
    subject = Subject.prompted("whisper", "prefix_tuning", {"num_virtual_tokens": 4})
    with pytest.raises(ValueError, match="3 entries for a batch of 2 rows"):
        subject.generate(TEXTS, prompts=["default", None, "default"], max_new_tokens=3)
    assert subject.generate(TEXTS, max_new_tokens=3).shape[0] == 2  # the active prompts apply to every row


def runs(model, text):
    """Return whether the bare model runs; with transformers 5.15, Whisper's decoder alone raises its own error."""
    try:
        model(input_ids=text)
    except IndexError:
        return False
    return True


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_the_decoder_alone(method):
    """The decoder alone is a causal model with its own class and without cross-attention."""
    torch.manual_seed(0)
    model = WhisperForCausalLM(tiny_model("whisper").config).eval()
    text = random_text(7, 3)
    if not runs(model, text):
        with pytest.raises(zoo.UnsupportedError, match="a trial run of its decoder failed"):
            zoo.get_method(method)(model, num_virtual_tokens=4)
        pytest.skip("the base model fails in this version of transformers, and is refused")
    with torch.no_grad():
        expected = model(input_ids=text).logits
        zoo.get_method(method)(model, num_virtual_tokens=4)
        full = model(input_ids=text, use_cache=False).logits
        assert not torch.allclose(full, expected, atol=1e-4)
        cache = None
        for step in range(text.shape[1]):
            output = model(input_ids=text[:, step : step + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            assert_equal(output.logits[:, 0], full[:, step], f"step {step}")
    zoo.detach(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=text).logits, expected)


def check_word_times():
    """Check word times against the base model and the text without times; `generate` writes "eager" to the config."""

    def with_times(model):
        wanted = {"no_timestamps_token_id": 99, "is_multilingual": False, "alignment_heads": [[0, 0], [1, 1]]}
        for key, value in {**wanted, "suppress_tokens": None, "begin_suppress_tokens": None}.items():
            setattr(model.generation_config, key, value)
        return model

    config = tiny_model("whisper").config
    sound = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)
    base, model = with_times(tiny_model("whisper")), with_times(tiny_model("whisper"))
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=4)
    expected = model.generate(sound, max_new_tokens=6)
    found = model.generate(sound, max_new_tokens=6, return_token_timestamps=True)
    assert found["token_timestamps"].shape == found["sequences"].shape
    assert torch.equal(found["sequences"][:, -expected.shape[1] :], expected[:, -found["sequences"].shape[1] :])
    with model.prompts.disabled():
        given = model.generate(sound, max_new_tokens=6, return_token_timestamps=True)
    right = base.generate(sound, max_new_tokens=6, return_token_timestamps=True)
    assert all(torch.equal(given[name], right[name]) for name in ("sequences", "token_timestamps"))
    assert not torch.equal(found["token_timestamps"], right["token_timestamps"])


def test_times_of_words():
    check_word_times()


def test_the_check_of_word_times_notices_a_prompt_that_is_ignored(monkeypatch):
    monkeypatch.setattr(
        "softprompt_zoo.sites.reach.attention_in_config.AttentionInConfig.follow_attention", lambda *args: None
    )
    with pytest.raises(AssertionError):
        check_word_times()
