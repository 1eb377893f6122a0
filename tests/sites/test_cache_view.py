"""Special cases of models whose attention is reached through their cache."""

import copy

import pytest
import torch
from helpers.products import in_turns
from helpers.prompted import prompted
from transformers import BloomConfig, BloomForCausalLM, BloomForSequenceClassification, DynamicCache

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.sizes import IDS, WINDOW
from softprompt_zoo.testing.subject import Subject, pad, random_text
from softprompt_zoo.tokens.kinds import PlainTokens

ARCHITECTURES = ["nemotron", "gptj", "gpt_neo", "bloom", "falcon", "falcon_alibi", "mpt"]
WORDS, TEXT = random_text(WINDOW - 2, 8), random_text(9, 1)


def made_of_words(model, method="prefix_tuning"):
    """Attach a prompt that holds the keys and values, or the embeddings, of `WORDS`."""
    zoo.get_method(method)(model, num_virtual_tokens=WORDS.shape[1])
    backbone = model.prompts.backbone
    plain = backbone.keys_values(WORDS[0])
    if method == "prompt_tuning":
        plain = zoo.InputTokens(backbone.embed(WORDS[0]))
    model.prompts["default"].learned = PlainTokens(plain.tensors())
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_users_cache_holds_the_text_alone(architecture):
    subject = prompted(architecture)
    given = DynamicCache(config=subject.model.config)
    output = subject.run(TEXT, past_key_values=given, use_cache=True)
    assert output.past_key_values is given
    assert given.get_seq_length() == TEXT.shape[1]
    new = subject.run(TEXT, use_cache=True).past_key_values
    assert type(new) is DynamicCache
    assert new.get_seq_length() == TEXT.shape[1]
    assert subject.run(TEXT, use_cache=False).past_key_values is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attentions_are_those_of_the_row_alone(architecture):
    """The prompt stands between padding and text, but the returned attentions have the columns of the input."""
    subject = prompted(architecture, implementation="eager")
    texts = [TEXT, random_text(4, 2)]
    ids, mask = pad(texts, "left", extra=2)
    batch = subject.run(ids, mask, output_attentions=True).attentions
    for row, text in enumerate(texts):
        alone = subject.run(text, output_attentions=True).attentions
        for layer, own in zip(batch, alone, strict=True):
            length = text.shape[1]
            assert layer.shape[2:] == (ids.shape[1], ids.shape[1])
            assert_equal(layer[row, :, -length:, -length:], own[0], "attentions")
            assert layer[row, :, -length:, :-length].abs().max() == 0


@in_turns(method=["prefix_tuning", "prompt_tuning"], architecture=ARCHITECTURES, side=["left", "right"])
def test_padded_rows_behind_real_words(architecture, method, side):
    """Every row of a padded batch gives what the base model gives for the words followed by the row."""
    texts = [TEXT, random_text(4, 2)]
    base = Subject(architecture, tiny_model(architecture))
    expected = [base.logits(torch.cat([WORDS, text], dim=1))[0, WORDS.shape[1] :] for text in texts]
    subject = Subject(architecture, made_of_words(tiny_model(architecture), method))
    for extra in (0, 3):
        for row, logits in enumerate(subject.text_logits(texts, side, extra)):
            assert_equal(logits, expected[row], f"row {row}, {extra} more pads")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        ("prompt_tuning", "gptj"),
        ("prefix_tuning", "gptj"),
        ("prompt_tuning", "bloom"),
        ("prefix_tuning", "bloom"),
    ],
)
def test_a_compiled_forward_and_its_gradients(method, architecture):
    subject = prompted(architecture, method)
    compiled = torch.compile(subject.model, backend="aot_eager")
    for side in ("right", "left"):
        ids, mask = pad([TEXT, random_text(4, 2)], side)
        found = []
        for model in (subject.model, compiled):
            loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
            loss.backward()
            found.append((loss.detach(), subject.gradients()))
        (loss, gradients), (compiled_loss, compiled_gradients) = found
        assert_equal(compiled_loss, loss, f"loss, padded on the {side}")
        assert gradients.keys() == compiled_gradients.keys()
        for name, gradient in gradients.items():
            assert_equal(compiled_gradients[name], gradient, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_generation_behind_real_words(architecture):
    """A row's place among padding does not shift its windows and distances during generation either."""
    base = tiny_model(architecture)
    texts = [TEXT, random_text(4, 2)]
    options = {"max_new_tokens": 6, "do_sample": False}
    whole = [torch.cat([WORDS, text], dim=1) for text in texts]
    expected = [base.generate(t, attention_mask=torch.ones_like(t), **options)[0, t.shape[1] :] for t in whole]
    model = made_of_words(tiny_model(architecture))
    ids, mask = pad(texts, "left", extra=2)
    for use_cache in (True, False):
        generated = model.generate(ids, attention_mask=mask, use_cache=use_cache, **options)[:, ids.shape[1] :]
        assert torch.equal(generated, torch.stack(expected)), use_cache


def test_detach_leaves_nothing_on_the_layers():
    for architecture in ARCHITECTURES:
        model = tiny_model(architecture)
        before = [set(module.__dict__) for module in model.modules()]
        zoo.get_method("prefix")(model, num_virtual_tokens=4)
        zoo.detach(model)
        assert [set(module.__dict__) for module in model.modules()] == before


def test_a_copy_is_a_model_of_its_own():
    subject = prompted("bloom")
    expected = subject.logits(TEXT)
    copied = Subject("bloom", copy.deepcopy(subject.model))
    copied.disturb("default")
    assert torch.equal(subject.logits(TEXT), expected)
    assert not torch.equal(copied.logits(TEXT), expected)


def test_a_classifier_pools_behind_the_words():
    torch.manual_seed(0)
    base = BloomForSequenceClassification(BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4)).eval()
    texts = [TEXT, random_text(4, 2)]
    with torch.no_grad():
        expected = torch.cat([base(torch.cat([WORDS, text], dim=1)).logits for text in texts])
        made_of_words(base)
        for side in ("left", "right"):
            ids, mask = pad(texts, side)
            assert_equal(base(input_ids=ids, attention_mask=mask).logits, expected, side)


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = BloomForCausalLM(BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4))
    zoo.get_method("prefix")(model, num_virtual_tokens=4)
    assert {p.device.type for p in model.prompts.parameters()} == {"meta"}


def test_tokens_that_no_window_hides():
    model = tiny_model("gpt_neo")
    with pytest.raises(zoo.UnsupportedError, match=r"always_visible is True, but .* choose always_visible=False"):
        zoo.get_method("prefix")(model, num_virtual_tokens=4, always_visible=True)
    assert not hasattr(model, "prompts")
    shown = prompted("bloom", always_visible=True).logits(TEXT)  # without windows nothing is hidden
    assert torch.equal(shown, prompted("bloom").logits(TEXT))


def test_a_mask_that_is_not_two_dimensional():
    subject = prompted("bloom")
    mask = torch.ones(1, 1, 9, 9).tril().bool()
    with pytest.raises(zoo.UnsupportedError, match=r"attention mask of shape \(rows, length\), not a 4-D one"):
        subject.run(TEXT, mask)


def test_a_state_beside_keys_and_values_is_refused():
    """The trial at attaching notices a layer that also accumulates what it has seen, as recurrent layers do."""
    model = tiny_model("gptj")
    handle = model.transformer.h[0].register_forward_pre_hook(
        lambda module, args: (args[0] + args[0].cumsum(dim=1), *args[1:])
    )
    with pytest.raises(zoo.UnsupportedError, match="do not act as these words do; choose a model"):
        zoo.get_method("prefix")(model, num_virtual_tokens=4)
    assert not hasattr(model, "prompts")
    handle.remove()
    zoo.get_method("prefix")(model, num_virtual_tokens=4)
