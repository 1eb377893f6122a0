"""The encoder or decoder of an encoder-decoder by itself: one stack, with the config of both."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.trial import stacks as finding

WORDS, TEXT = torch.arange(50, 53)[None], torch.arange(4, 10)[None]


def stack_of(architecture, side):
    return getattr(tiny_model(architecture).base_model, side)


def acts_as_real_words(stack):
    """Check that embeddings of words act as the words themselves do."""
    with torch.no_grad():
        expected = stack(input_ids=torch.cat([WORDS, TEXT], dim=1)).last_hidden_state[:, WORDS.shape[1] :]
        bare = stack(input_ids=TEXT).last_hidden_state
    zoo.get_method("prompt_tuning")(stack, num_virtual_tokens=WORDS.shape[1]).eval()
    with torch.no_grad():
        stack.prompts["default"].learned.embeddings.copy_(stack.prompts.backbone.embed(WORDS)[0])
        given = stack(input_ids=TEXT).last_hidden_state
        detached = zoo.detach(stack)(input_ids=TEXT).last_hidden_state
    assert not torch.allclose(given, bare, atol=1e-2)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(detached, bare)


@pytest.mark.parametrize(
    ("architecture", "side"),
    [("t5", "encoder"), ("bart", "encoder"), ("bart", "decoder"), ("longt5", "decoder"), ("whisper", "decoder")],
)
def test_a_stack_alone_takes_prompts(architecture, side):
    acts_as_real_words(stack_of(architecture, side))


@pytest.mark.parametrize(("architecture", "side"), [("t5", "decoder"), ("whisper", "encoder"), ("led", "decoder")])
def test_or_refuses_them(architecture, side):
    stack = stack_of(architecture, side)
    with pytest.raises(zoo.UnsupportedError):
        zoo.get_method("prompt_tuning")(stack)
    assert not hasattr(stack, "prompts")


def test_taken_for_both_stacks_it_is_red(monkeypatch):
    find = finding.find_stacks

    def as_both(model):
        stack = find(model)[1]["encoder"]
        return "encoder_decoder", {"encoder": stack, "decoder": stack}

    monkeypatch.setattr("softprompt_zoo.trial.examination.find_stacks", as_both)
    with pytest.raises((AssertionError, RuntimeError, zoo.UnsupportedError, KeyError)):
        acts_as_real_words(stack_of("t5", "encoder"))
