"""Virtual tokens inside the text, made of real words, give what the base model gives for these words."""

import pytest
import torch
from helpers.products import in_turns
from texts_with_slots import METHODS, TEXTS, TOKENS, base_logits, base_of, seen, spoken, subject_and_words, with_slots

from softprompt_zoo.testing import TINY_MODELS, tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text


@in_turns(method=METHODS, architecture=TINY_MODELS, side=["left", "right"])
def test_slots_made_of_words_give_what_the_words_give(method, architecture, side):
    subject, words = subject_and_words(architecture, method)
    base = base_of(architecture)
    ids, mask, slots = with_slots(side=side)
    logits = subject.logits(ids, mask, soft_slots=slots)
    expected = base_logits(base, spoken(ids, slots, words), mask)
    assert_equal(seen(logits, mask, subject), seen(expected, mask, base), "logits")
    assert not torch.allclose(seen(base_logits(base, ids, mask), mask, base), seen(expected, mask, base), atol=1e-2)


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_rows_with_other_places_give_what_they_give_alone(architecture):
    subject = Subject.prompted(architecture, "p_tuning", {"num_virtual_tokens": TOKENS})
    ids, mask, slots = with_slots()
    batch = subject.logits(ids, mask, soft_slots=slots)
    for row, text in enumerate(TEXTS):
        length = text.shape[1]
        alone = subject.logits(ids[row : row + 1, :length], soft_slots=slots[row : row + 1, :length])[0]
        assert_equal(batch[row] if subject.is_encoder_decoder else batch[row, :length], alone, f"row {row}")


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert", "t5", "bart"])
def test_only_the_slots_differ_from_the_text(architecture):
    subject, words = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    seen_embeddings = []
    stack = next(iter(subject.model._softprompt_stacks.values())).module
    hook = lambda module, args, kwargs: seen_embeddings.append(kwargs["inputs_embeds"])  # noqa: E731
    handle = stack.register_forward_pre_hook(hook, with_kwargs=True)
    subject.run(ids, mask, soft_slots=slots)
    handle.remove()
    embed = subject.model.prompts.backbone.embed
    text = slots < 0
    assert torch.equal(seen_embeddings[0][text], embed(ids)[text])
    assert torch.equal(seen_embeddings[0][~text], embed(spoken(ids, slots, words))[~text])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "t5", "bart"])
def test_outputs_and_losses_are_those_of_the_words(architecture):
    """No virtual position appears, labels keep their places, and the label of a slot counts unless it is -100."""
    subject, words = subject_and_words(architecture, implementation="eager")
    base = Subject(architecture, tiny_model(architecture, implementation="eager"))
    ids, mask, slots = with_slots()
    every = random_text(8, 78).repeat(3, 1) if subject.is_encoder_decoder else ids.masked_fill(mask == 0, -100)
    for given in (every, every if subject.is_encoder_decoder else every.masked_fill(slots >= 0, -100)):
        more = {"labels": given, "output_hidden_states": True, "output_attentions": True}
        ours = subject.run(ids, mask, soft_slots=slots, **more)
        theirs = base.run(spoken(ids, slots, words), mask, **more)
        assert_equal(ours.loss, theirs.loss, "loss")
    assert ours.keys() == theirs.keys()
    for name in [name for name in theirs if name.endswith(("hidden_states", "attentions"))]:
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert one.shape == other.shape, name


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "t5", "bart"])
def test_gradients_are_those_of_the_embeddings_at_the_slots(architecture):
    """A virtual token that is used twice gets both gradients; one that no row uses gets none."""
    subject = Subject.prompted(architecture, "prompt_tuning", {"num_virtual_tokens": TOKENS + 2})
    base = base_of(architecture)
    ids, mask, slots = with_slots()
    table = subject.model.prompts["default"].learned.embeddings
    weights = 1 if subject.is_encoder_decoder else mask[..., None]
    (weights * subject.model(**subject.inputs(ids, mask, soft_slots=slots)).logits.pow(2)).sum().backward()

    inputs = base.model.get_input_embeddings()(ids).detach()
    inputs[slots >= 0] = table.detach()[slots[slots >= 0]]
    inputs.requires_grad_()
    arguments = base.inputs(ids, mask, inputs_embeds=inputs)
    del arguments["input_ids"]
    (weights * base.model(**arguments).logits.pow(2)).sum().backward()
    expected = torch.zeros_like(table)
    expected.index_add_(0, slots[slots >= 0], inputs.grad[slots >= 0])
    assert_equal(table.grad, expected, "gradient")
    assert (table.grad[:TOKENS].abs().amax(1) > 0).all()
    assert table.grad[TOKENS:].abs().max() == 0
