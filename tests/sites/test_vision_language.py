"""Models that read images: prompts come before the text decoder's tokens, including those of the image."""

import json

import pytest
import torch
from helpers.vision_models import IMAGE, MODELS, WINDOWED, arguments, rows, vision_model
from transformers import AutoModelForImageTextToText

import softprompt_zoo as zoo
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import pad, random_text
from softprompt_zoo.testing.tokenizer import tiny_tokenizer
from softprompt_zoo.tokens.kinds import PlainTokens

METHODS = ["prefix_tuning", "prompt_tuning"]
WORDS = random_text(4, 8) % 90 + 3
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE, IMAGE - 1]}

everywhere = pytest.mark.parametrize(("architecture", "method"), [(a, m) for a in MODELS for m in METHODS])
with_windows = pytest.mark.parametrize(
    ("architecture", "method"), [(a, m) for a in (*MODELS, *WINDOWED) for m in METHODS]
)


def prompted(architecture, method):
    model = zoo.get_method(method)(vision_model(architecture), num_virtual_tokens=4)
    torch.manual_seed(1)
    model.prompts.add("other", method, num_virtual_tokens=6)
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def made_of_words(architecture, method):
    model = zoo.get_method(method)(vision_model(architecture), num_virtual_tokens=WORDS.shape[1])
    backbone = model.prompts.backbone
    plain = backbone.keys_values(WORDS[0]) if method == "prefix_tuning" else zoo.InputTokens(backbone.embed(WORDS[0]))
    model.prompts["default"].learned = PlainTokens(plain.tensors())
    return model


@torch.no_grad()
def logits(model, architecture, ids, images, mask=None, **more):
    return model(**arguments(architecture, ids, images, mask), **more).logits


@with_windows
def test_real_words_in_front_of_text_and_image(architecture, method):
    base, model = vision_model(architecture), made_of_words(architecture, method)
    for number in range(3):
        [text], image = rows(architecture, [number])
        whole = torch.cat([WORDS, text], dim=1)
        expected = logits(base, architecture, whole, image)[:, WORDS.shape[1] :]
        assert_equal(logits(model, architecture, text, image), expected, f"row {number}")
        expected = base.generate(**arguments(architecture, whole, image), **GREEDY)[:, whole.shape[1] :]
        for use_cache in (True, False):
            found = model.generate(**arguments(architecture, text, image), **GREEDY, use_cache=use_cache)
            assert torch.equal(found[:, text.shape[1] :], expected), f"row {number}, use_cache={use_cache}"


@with_windows
def test_rows_with_images_and_prompts_of_their_own(architecture, method):
    model, base = prompted(architecture, method), vision_model(architecture)
    texts, images = rows(architecture)
    names = ["other", None, "default"]
    for side in ("left", "right"):
        ids, mask = pad(texts, side)
        batch = logits(model, architecture, ids, images, mask, prompts=names)
        for number, name in enumerate(names):
            [text], image = rows(architecture, [number])
            alone = logits(model, architecture, text, image, prompts=[name])
            assert_equal(batch[number][mask[number].bool()], alone[0], f"row {number}, padded on the {side}")
            plain = logits(base, architecture, text, image)
            assert (name is None) == torch.allclose(alone, plain, atol=1e-4)
    ids, mask = pad(texts, "left")
    generated = model.generate(**arguments(architecture, ids, images, mask), prompts=names, **GREEDY)
    for number, name in enumerate(names):
        [text], image = rows(architecture, [number])
        alone = model.generate(**arguments(architecture, text, image), prompts=[name], **GREEDY)
        assert torch.equal(generated[number, ids.shape[1] :], alone[0, text.shape[1] :]), f"row {number}"


@everywhere
def test_the_image_counts_and_its_encoder_is_left_alone(architecture, method):
    model, base = prompted(architecture, method), vision_model(architecture)
    [text], image = rows(architecture, [0])
    seen = logits(model, architecture, text, image)
    assert not torch.allclose(seen, logits(model, architecture, text, image + 1), atol=1e-4)
    assert model.config.vision_config._attn_implementation == base.config.vision_config._attn_implementation
    with torch.no_grad():
        features = [m.get_image_features(image, *_grid(architecture)).pooler_output for m in (model, base)]
    assert all(torch.equal(own, other) for own, other in zip(*features, strict=True))
    model(**arguments(architecture, text, image), labels=text).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert all(name.startswith("prompts.default") for name in trained)


@everywhere
def test_disabled_and_detached_are_the_base_model(architecture, method, tmp_path):
    model, base = prompted(architecture, method), vision_model(architecture)
    [text], image = rows(architecture, [0])
    expected, own = logits(base, architecture, text, image), logits(model, architecture, text, image)
    assert not torch.allclose(own, expected, atol=1e-2)
    with model.prompts.disabled():
        assert torch.equal(logits(model, architecture, text, image), expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(zoo.load(base, tmp_path), architecture, text, image), own)
    zoo.detach(model)
    assert torch.equal(logits(model, architecture, text, image), expected)


@pytest.mark.parametrize("architecture", MODELS)
def test_exported_to_the_vocabulary(architecture, tmp_path):
    model = prompted(architecture, "prompt_tuning")
    zoo.export(model, tmp_path / "out", to="vocabulary", tokenizer=tiny_tokenizer())
    soft = json.loads((tmp_path / "out" / "soft_tokens.json").read_text())["prompts"]["default"]["ids"]
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    [text], image = rows(architecture, [0])
    found = logits(plain, architecture, torch.cat([torch.tensor([soft]), text], dim=1), image)
    expected = logits(model, architecture, text, image)
    assert_equal(found[:, 4:, : expected.shape[2]], expected, "logits of the checkpoint")
    loaded = zoo.load(vision_model(architecture), tmp_path / "out")
    assert_equal(logits(loaded, architecture, text, image), expected, "loaded back")


def _grid(architecture):
    return () if architecture == "llava" else (torch.tensor([[1, 4, 4]]),)
