"""Prompts that read the rows' text, or change its embeddings: against hand-made prompts and hand-made embeddings."""

import dataclasses

import pytest
import torch
from helpers.products import suite_in_turns
from helpers.text_methods import TEXT_METHODS, Maps, Reads, mean, registered
from transformers import DynamicCache, StaticCache

import softprompt_zoo as zoo
from softprompt_zoo.sites import reading
from softprompt_zoo.testing import conformance_suite, tiny_model
from softprompt_zoo.testing.comparison import assert_equal

IDS = torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, :3] = 0


@pytest.fixture(scope="module", autouse=True)
def _methods():
    with registered(**{name: plugin() for name, plugin in TEXT_METHODS.items()}):
        yield


with registered(**{name: plugin() for name, plugin in TEXT_METHODS.items()}):
    PROMISES = (1, 2, 3, 4, 6, 7, 10, 11)
    TestReads = suite_in_turns(conformance_suite("reads", architectures=("bert", "llama", "t5"), promises=PROMISES))
    TestReadsInto = suite_in_turns(
        conformance_suite("reads_into", architectures=("gpt2", "gemma3"), promises=(1, 2, 3, 4, 10))
    )
    TestMaps = suite_in_turns(conformance_suite("maps", architectures=("gpt2", "t5"), promises=PROMISES))


def attached(method, architecture="llama"):
    torch.manual_seed(0)
    return zoo.get_method(method)(tiny_model(architecture)).eval()


def by_hand(model, ids, mask):
    """Return logits after constant tokens that are made of one row's text by hand."""
    own = model.prompts["default"].learned
    plain = tiny_model(model.config.model_type)
    with torch.no_grad():
        states = plain.model(input_ids=ids, attention_mask=mask).last_hidden_state
        tokens = own.base + own.layer(mean(states, mask))
        words = torch.cat([tokens[None], plain.get_input_embeddings()(ids)], dim=1)
        return plain(inputs_embeds=words).logits[:, tokens.shape[0] :]


def test_tokens_are_those_that_are_made_of_the_text_by_hand():
    model = attached("reads")
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).logits
    for row in range(len(IDS)):
        seen = MASK[row].bool()
        alone = IDS[row : row + 1, seen]
        assert_equal(logits[row : row + 1, seen], by_hand(model, alone, torch.ones_like(alone)), f"row {row}")


def test_the_text_is_what_text_mask_says_or_has_no_label():
    model = attached("reads")
    text = torch.zeros_like(IDS)
    text[:, :4] = 1
    ids, labels = IDS[:1], IDS[:1].masked_fill(text[:1].bool(), -100)
    expected = by_hand_of(model, ids, text[:1])
    with torch.no_grad():
        assert_equal(model(input_ids=ids, text_mask=text[:1]).logits, expected, "text_mask")
        assert_equal(model(input_ids=ids, labels=labels).logits, expected, "labels")


def by_hand_of(model, ids, text):
    """Return logits after tokens that are made of a part of the text."""
    own = model.prompts["default"].learned
    plain = tiny_model("llama")
    with torch.no_grad():
        tokens = own.base + own.layer(mean(plain.model(input_ids=ids).last_hidden_state, text))
        words = torch.cat([tokens[None], plain.get_input_embeddings()(ids)], dim=1)
        return plain(inputs_embeds=words).logits[:, tokens.shape[0] :]


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_changed_embeddings_are_those_that_are_changed_by_hand(architecture):
    model, base = attached("maps", architecture), tiny_model(architecture)
    more = {"decoder_input_ids": IDS[:, :3]} if architecture == "t5" else {}
    offsets = model.prompts["default"].learned.offsets
    with torch.no_grad():
        embeddings = base.get_input_embeddings()(IDS) + offsets[: IDS.shape[1]]
        expected = base(inputs_embeds=embeddings, **more).logits
        assert_equal(model(input_ids=IDS, **more).logits, expected, "logits")


def test_generated_tokens_are_left_as_they_are():
    model, base = attached("maps"), tiny_model("llama")
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    embeddings = base.get_input_embeddings()(IDS) + model.prompts["default"].learned.offsets[: IDS.shape[1]]
    expected = base.generate(inputs_embeds=embeddings.detach(), **options)
    assert torch.equal(model.generate(IDS, **options)[:, IDS.shape[1] :], expected)


def test_rows_may_have_prompts_of_every_kind():
    model = attached("reads")
    model.prompts.add("constant", "prompt_tuning", num_virtual_tokens=3)
    model.prompts.add("offsets", "maps")
    rows = [("offsets", "default"), None, ("constant", "default")]
    with torch.no_grad():
        batch = model(input_ids=IDS, prompts=rows).logits
        for row, names in enumerate(rows):
            alone = model(input_ids=IDS[row : row + 1], prompts=[names]).logits
            assert_equal(batch[row], alone[0], f"row {row}")
    text = model.generate(IDS, prompts=rows, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(IDS))
    for row, names in enumerate(rows):
        ids = IDS[row : row + 1]
        options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(text[row], model.generate(ids, prompts=[names], **options)[0]), f"row {row}"


@pytest.mark.parametrize("method", ["reads", "maps"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_text_goes_on_from_its_cache(method, cache):
    model = attached(method)
    kept = (
        DynamicCache(config=model.config) if cache == "dynamic" else StaticCache(config=model.config, max_cache_len=16)
    )
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    expected = model.generate(IDS, **options)
    ids, written = IDS, []
    with torch.no_grad():
        for _ in range(5):
            logits = model(input_ids=ids, past_key_values=kept, use_cache=True).logits
            ids = logits[:, -1:].argmax(dim=-1)
            written.append(ids)
    assert torch.equal(torch.cat(written, dim=1), expected[:, IDS.shape[1] :])


def test_a_cache_of_another_text_is_refused():
    model = attached("reads")
    with torch.no_grad():
        with model.prompts.disabled():
            kept = model(input_ids=IDS, use_cache=True).past_key_values
        with pytest.raises(zoo.UnsupportedError, match="'default' is made from each row's text when the text starts"):
            model(input_ids=IDS[:, :1], past_key_values=kept)


@pytest.mark.parametrize("method", ["reads", "maps"])
def test_a_text_goes_on_with_as_many_rows(method):
    model = attached(method)
    with torch.no_grad():
        kept = model(input_ids=IDS[:2], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="the text started with 2 rows but continues with 3"):
            model(input_ids=IDS[:, :1], past_key_values=kept)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"labels": IDS}, ValueError, "row 0 has no text from which to make prompt 'default'"),
        ({"text_mask": [1]}, TypeError, "text_mask is list"),
        ({"text_mask": MASK.float()}, ValueError, "text_mask has shape .* and dtype torch.float32"),
        ({"text_mask": MASK[:, 1:]}, ValueError, "text_mask has shape \\(3, 6\\) for 3 rows of 7 tokens"),
        (
            {"attention_mask": MASK[:, None, None].bool()},
            zoo.UnsupportedError,
            "does not have the shape \\(rows, length\\)",
        ),
    ],
    ids=["all labeled", "list", "numbers", "length", "form of the mask"],
)
def test_what_does_not_say_what_the_text_is_is_refused(given, error, message):
    model = attached("reads")
    with pytest.raises(error, match=message):
        model(input_ids=IDS, **given)


class ReadsPadding(Reads):
    """A method that takes padding for text."""

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters, text):
        made = parameters.layer(text.embeddings.float().mean(dim=1))
        return zoo.InputTokens(parameters.base + made[:, None])


class ForgetsRows(Reads):
    """A method that makes the same tokens for all rows, without their axis."""

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters, text):
        return zoo.InputTokens(parameters.base)


class Cuts(Maps):
    """A method that loses a position of the text."""

    @zoo.hookimpl
    def map_text(self, parameters, text):
        return text.embeddings[:, 1:]


@pytest.mark.parametrize(
    ("plugin", "error", "message"),
    [
        (ReadsPadding, zoo.PluginError, "'build_virtual_tokens', builds other embeddings for a row in a batch"),
        (ForgetsRows, zoo.ShapeError, "'build_virtual_tokens', returned a tensor of shape .* for a text of 1 rows"),
        (Cuts, zoo.ShapeError, "'map_text', returned embeddings of shape \\(1, 2, 32\\); expected \\(1, 3, 32\\)"),
    ],
)
def test_a_hook_that_breaks_its_contract_is_told_at_attaching(plugin, error, message):
    model = tiny_model("llama")
    kind = type(model)
    with registered(broken=plugin()), pytest.raises(error, match=message):
        zoo.get_method("broken")(model)
    assert type(model) is kind


@pytest.mark.parametrize("method", ["reads", "maps"])
def test_there_is_no_merged_form(method, tmp_path):
    model = attached(method)
    for refused in (zoo.merge, lambda model: zoo.export(model, tmp_path, to="peft")):
        with pytest.raises(zoo.UnsupportedError, match=f"method '{method}' .* have no merged form"):
            refused(model)
    assert not list(tmp_path.iterdir())
    assert not model.prompts["default"].is_merged


def test_a_model_that_reads_sound_has_no_text_to_read():
    with pytest.raises(zoo.UnsupportedError, match="its encoder reads sound"):
        attached("reads", "whisper")


def take_everything_for_text(monkeypatch):
    monkeypatch.setattr(reading, "_own_mask", lambda call, kwargs, text: torch.ones(text.shape[:2], dtype=torch.bool))


def take_what_comes_later_for_text(monkeypatch):
    monkeypatch.setattr(reading, "_later", lambda mask, text, past: torch.ones(text.shape[:2], dtype=torch.bool))


def give_all_rows_the_first_ones_tokens(monkeypatch):
    split = reading.separate_rows

    def first(selection, placements, of_rows, rows, device):
        return split(selection, placements, {part: [own[0]] * len(own) for part, own in of_rows.items()}, rows, device)

    monkeypatch.setattr(reading, "separate_rows", first)


def forget_what_was_made(monkeypatch):
    begun = reading._begun
    monkeypatch.setattr(reading, "_begun", lambda *args: dataclasses.replace(begun(*args), read={}, text_mask=None))


@pytest.mark.parametrize(
    ("mutate", "check"),
    [
        (take_everything_for_text, test_tokens_are_those_that_are_made_of_the_text_by_hand),
        (take_everything_for_text, test_the_text_is_what_text_mask_says_or_has_no_label),
        (give_all_rows_the_first_ones_tokens, test_tokens_are_those_that_are_made_of_the_text_by_hand),
        (take_what_comes_later_for_text, test_generated_tokens_are_left_as_they_are),
        (forget_what_was_made, lambda: test_a_text_goes_on_from_its_cache("reads", "dynamic")),
    ],
)
def test_a_mutation_is_noticed(mutate, check, monkeypatch):
    check()
    mutate(monkeypatch)
    with pytest.raises((AssertionError, zoo.UnsupportedError)):
        check()
