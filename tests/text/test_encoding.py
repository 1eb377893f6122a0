"""Templates with soft slots: what `zoo.encode` makes of them, against the tokenizer itself and the base model."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertTokenizer, GPT2Config, GPT2ForSequenceClassification

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.tokenizer import tiny_tokenizer
from softprompt_zoo.tokens.kinds import PlainTokens

UNK = 3
CHAT = "{% for m in messages %}{{ '[bos] ' + m['role'] + ' ' + m['content'] | trim + ' [eos] ' }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}{{ '[bos] w99' }}{% endif %}"


def rows(encoded):
    """Return the tokens of each row that are not padding: a word's id, or `s3` for virtual token 3."""
    shown = []
    for ids, mask, slots in zip(encoded.input_ids, encoded.attention_mask, encoded.soft_slots, strict=True):
        seen = zip(ids[mask.bool()].tolist(), slots[mask.bool()].tolist(), strict=True)
        shown.append([token if slot < 0 else f"s{slot}" for token, slot in seen])
    return shown


def encode(template, **options):
    return zoo.encode(tiny_tokenizer(), template, **options)


def test_slots_words_and_fields_stand_where_the_template_says():
    encoded = encode("{soft:3} w20 {text}{soft:2} w30", text="w40 w41")
    assert rows(encoded) == [["s0", "s1", "s2", 20, 40, 41, "s3", "s4", 30]]
    assert encoded.input_ids.tolist() == [[UNK] * 3 + [20, 40, 41] + [UNK] * 2 + [30]]
    assert encoded.attention_mask.tolist() == [[1] * 9]
    assert list(encoded) == ["input_ids", "attention_mask", "soft_slots"]
    assert all(tensor.dtype == torch.long for tensor in encoded.values())


def test_named_tokens_do_not_count():
    shared = rows(encode("{soft:2} {soft[1]} w9 {soft[0:3]} {soft:2} {soft[7:9]}"))
    assert shared == [["s0", "s1", "s1", 9, "s0", "s1", "s2", "s2", "s3", "s7", "s8"]]


def test_a_template_without_slots_is_the_text():
    tokenizer = tiny_tokenizer(with_special_tokens=True)
    encoded = zoo.encode(tokenizer, "w5 {text}", text="w6")
    assert encoded.input_ids.tolist() == [tokenizer("w5 w6").input_ids]
    assert encoded.soft_slots.tolist() == [[-1] * 4]


def test_special_tokens_stand_at_the_ends():
    assert rows(zoo.encode(tiny_tokenizer(with_special_tokens=True), "{soft:1} w5 {soft:1}")) == [[1, "s0", 5, "s1", 2]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_on_the_tokenizers_side(side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    encoded = zoo.encode(tokenizer, "{soft:1}{text}", text=["w5", "w6 w7 w8"])
    pads = [[0, 0], [0, 0], [-1, -1]]
    content = [[UNK, 5], [1, 1], [0, -1]]
    for name, pad, own in zip(encoded, pads, content, strict=True):
        assert encoded[name][0].tolist() == (pad + own if side == "left" else own + pad), name
    assert rows(encoded) == [["s0", 5], ["s0", 6, 7, 8]]


def test_padding_to_a_length():
    encoded = encode("{soft:1}{text}", text=["w5", "w6 w7"], max_length=6, padding="max_length")
    assert encoded.input_ids.shape == (2, 6)
    assert encoded.attention_mask.sum(1).tolist() == [2, 3]


def test_one_text_serves_every_row():
    encoded = encode("{label} {text}", text=["w5", "w6"], label="w9")
    assert rows(encoded) == [[9, 5], [9, 6]]
    assert rows(encode("{text}", text=(word for word in ["w5", "w6"]))) == [[5], [6]]
    assert rows(encode("w5")) == [[5]]


def test_arguments_names_may_be_fields():
    assert rows(zoo.encode(tiny_tokenizer(), "{template} {tokenizer}", template="w5", tokenizer="w6")) == [[5, 6]]


def test_fields_are_never_read_as_a_template():
    tokenizer = tiny_tokenizer()
    text = "{soft:3} {text} {{ w5"
    encoded = zoo.encode(tokenizer, "{soft:1} {text}", text=text)
    assert rows(encoded) == [["s0", *tokenizer(text).input_ids]]


def test_doubled_braces_are_words():
    tokenizer = tiny_tokenizer()
    assert zoo.encode(tokenizer, "{{ w5 }}").input_ids.tolist() == [tokenizer("{ w5 }").input_ids]


def byte_level():
    """Return a byte-level tokenizer, in which a space belongs to the word after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = ["Review: a good film. Review: a bad film, good grief", "Sentiment: good, bad, a film"] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<end>"]
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>", unk_token="<end>")


def test_words_and_fields_between_two_slots_are_one_piece():
    """ "Review: " and "good" tokenized separately would make the space a token of its own."""
    tokenizer = byte_level()
    encoded = zoo.encode(tokenizer, "{soft:1}Review: {text} film{soft:1}", text="good")
    expected = tokenizer("Review: good film").input_ids
    assert rows(encoded) == [["s0", *expected, "s1"]]
    apart = [token for part in ("Review: ", "good", " film") for token in tokenizer(part).input_ids]
    assert apart != expected


def test_a_slot_holds_neither_padding_nor_an_end():
    encoded = zoo.encode(byte_level(), "a{soft:1}")
    end = byte_level().eos_token_id
    assert encoded.input_ids[0, -1] != end
    assert 0 <= encoded.input_ids[0, -1] < len(byte_level())


def test_max_length_cuts_the_fields_and_nothing_else():
    template = "{soft:2} w90 {first} w91 {soft[0]} {second} w92"
    texts = {"first": "w10 w11 w12 w13 w14 w15", "second": "w20 w21"}
    for length, (first, second) in {
        14: (6, 2),
        13: (5, 2),
        11: (3, 2),
        10: (2, 2),
        9: (1, 1),
        8: (1, 1),
        6: (0, 0),
    }.items():
        [row] = rows(encode(template, **texts, max_length=length))
        kept = [*range(10, 10 + first)], [*range(20, 20 + second)]
        assert row == ["s0", "s1", 90, *kept[0], 91, "s0", *kept[1], 92], length


def test_only_rows_that_are_too_long_are_cut():
    encoded = encode("{soft:1} {text}", text=["w5 w6 w7 w8", "w5 w6"], max_length=3)
    assert rows(encoded) == [["s0", 5, 6], ["s0", 5, 6]]
    assert rows(encode("{soft:1} {text}", text=["w5 w6"], max_length=3)) == [["s0", 5, 6]]


def test_special_tokens_count_and_stay():
    tokenizer = tiny_tokenizer(with_special_tokens=True)
    assert rows(zoo.encode(tokenizer, "{soft:1} {text}", text="w5 w6 w7", max_length=5)) == [[1, "s0", 5, 6, 2]]


def test_a_tokenizer_without_offsets():
    """Without offsets, texts may be cut after any character."""

    class Slow(type(tiny_tokenizer())):
        is_fast = False

    tokenizer = tiny_tokenizer()
    tokenizer.__class__ = Slow
    [row] = rows(zoo.encode(tokenizer, "{soft:2} w90 {text}", text="w10 w11 w12", max_length=5))
    assert row[:5] == ["s0", "s1", 90, 10, 11]


@settings(max_examples=60, deadline=None)
@given(
    first=st.text(st.sampled_from("ab:,. gdRé漢😀{}"), max_size=30),
    second=st.text(st.sampled_from("abgood film.{}é"), max_size=30),
    room=st.integers(0, 40),
)
def test_any_text_fits_with_every_slot_and_word(first, second, room):
    tokenizer = byte_level_once()
    words = [tokenizer(text).input_ids for text in ("Review:", "Sentiment:")]
    needed = 5 + sum(map(len, words))
    template = "{soft:2}Review:{soft:1}{first}{soft[0]}Sentiment:{soft[1]}{second}"
    [row] = rows(zoo.encode(tokenizer, template, first=first, second=second, max_length=needed + room))
    assert len(row) <= needed + room
    assert [token for token in row if isinstance(token, str)] == ["s0", "s1", "s2", "s0", "s1"]
    assert row[2 : 2 + len(words[0])] == words[0]
    place = [index for index, token in enumerate(row) if token == "s0"][1]
    assert row[place + 1 : place + 1 + len(words[1])] == words[1]
    whole = tokenizer(first).input_ids, tokenizer(second).input_ids
    if needed + sum(map(len, whole)) <= needed + room:
        assert row[3 + len(words[0]) : place] == whole[0]
        assert row[place + 2 + len(words[1]) :] == whole[1]


_KEPT = []


def byte_level_once():
    if not _KEPT:
        _KEPT.append(byte_level())
    return _KEPT[0]


def chat_tokenizer(template=CHAT):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_is_put_together_by_the_tokenizers_template():
    tokenizer = chat_tokenizer()
    messages = [
        {"role": "w80", "content": "{soft:2} w5"},
        {"role": "w81", "content": "{text} w6 {soft:1} {soft[0]}"},
    ]
    before = copy.deepcopy(messages)
    encoded = zoo.encode(tokenizer, messages, text=["w7", "w8 w9"])
    expected = [1, 80, "s0", "s1", 5, 2, 1, 81, 7, 6, "s2", "s0", 2, 1, 99]
    assert rows(encoded) == [expected, [*expected[:8], 8, 9, *expected[9:]]]
    assert messages == before


def test_a_chat_without_slots_is_what_the_tokenizer_makes():
    """The fields are filled in before the template sees the chat: here it trims them."""
    tokenizer = chat_tokenizer()
    chat = [{"role": "w80", "content": "{text}"}]
    filled = [{"role": "w80", "content": "  w5 "}]
    expected = tokenizer.apply_chat_template(filled, add_generation_prompt=True, return_dict=False)
    assert rows(zoo.encode(tokenizer, chat, text="  w5 ")) == [expected]


def test_a_chat_that_ends_with_the_assistant_ends_there():
    chat = [{"role": "w80", "content": "w5"}, {"role": "assistant", "content": "{soft:1} {text}"}]
    assert rows(zoo.encode(chat_tokenizer(), chat, text="w6")) == [[1, 80, 5, 2, 1, UNK, "s0", 6, 2]]


def test_a_chat_is_cut_to_a_length():
    chat = [{"role": "w80", "content": "{soft:2} {text} w6"}]
    encoded = zoo.encode(chat_tokenizer(), chat, text="w10 w11 w12 w13", max_length=10)
    assert rows(encoded) == [[1, 80, "s0", "s1", 10, 11, 6, 2, 1, 99]]


def test_no_text_of_a_chat_is_taken_for_a_slot():
    chat = [{"role": "w80", "content": "{soft:1} {text}"}]
    text = "\ue0000\ue000 w5 \ue001"
    tokenizer = chat_tokenizer()
    assert rows(zoo.encode(tokenizer, chat, text=text)) == [[1, 80, "s0", *tokenizer(text).input_ids, 2, 1, 99]]


@pytest.mark.parametrize("template", ["w5", "{{ messages[0]['content'] * 2 }}"])
def test_a_chat_template_that_loses_or_repeats_slots(template):
    with pytest.raises(ValueError, match="leaves out, repeats or moves a part of the chat that has slots"):
        zoo.encode(chat_tokenizer(template), [{"role": "user", "content": "{soft:2}"}])


def test_token_types_of_a_tokenizer_that_gives_them():
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "good": 5, "film": 6})
    encoded = zoo.encode(tokenizer, "{soft:2} {text} [MASK]", text=["good film", "good"])
    assert rows(encoded) == [[2, "s0", "s1", 5, 6, 4, 3], [2, "s0", "s1", 5, 4, 3]]
    assert torch.equal(encoded.token_type_ids, torch.zeros_like(encoded.input_ids))
    config = BertConfig(vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    from transformers import BertForMaskedLM

    model = zoo.get_method("p_tuning")(BertForMaskedLM(config), num_virtual_tokens=2)
    assert model(**encoded).logits.shape == (2, 7, 7)


def attach(model, words):
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=len(words))
    embed = model.prompts.backbone.embed
    model.prompts["default"].learned = PlainTokens({"embeddings": embed(torch.tensor(words)).detach().clone()})
    return model.eval()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "t5"])
def test_what_it_makes_runs_as_the_text_with_the_words(architecture):
    tokenizer = tiny_tokenizer()
    base, model = tiny_model(architecture), attach(tiny_model(architecture), [60, 61, 62])
    texts = ["w5 w6 w7", "w8"]
    encoded = zoo.encode(tokenizer, "{soft:2} w20 {text} {soft:1} w21", text=texts)
    plain = tokenizer([f"w60 w61 w20 {text} w62 w21" for text in texts], padding=True, return_tensors="pt")
    more = {"decoder_input_ids": torch.tensor([[0, 5], [0, 5]])} if architecture == "t5" else {}
    with torch.no_grad():
        logits, expected = model(**encoded, **more).logits, base(**plain, **more).logits
    mask = torch.ones_like(logits[..., 0]).bool() if more else plain.attention_mask.bool()
    assert_equal(logits[mask], expected[mask], "logits")


def test_generate_takes_it():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    base, model = tiny_model("llama"), attach(tiny_model("llama"), [60, 61])
    encoded = zoo.encode(tokenizer, "w5 {soft:2} {text}", text=["w6 w7", "w8"])
    plain = tokenizer(["w5 w60 w61 w6 w7", "w5 w60 w61 w8"], padding=True, return_tensors="pt")
    text = model.generate(**encoded, max_new_tokens=5, do_sample=False)
    assert torch.equal(text[:, -5:], base.generate(**plain, max_new_tokens=5, do_sample=False)[:, -5:])


def test_a_classifier_pools_at_a_slot_that_ends_the_text():
    """The classifier pools at the last id that is not padding; with padding at the slots, it would pool before them."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=32, pad_token_id=0, num_labels=3)
    base = GPT2ForSequenceClassification(config).eval()
    for parameter in base.parameters():
        parameter.data.normal_(std=0.3)
    model = attach(copy.deepcopy(base), [60, 61])
    tokenizer = tiny_tokenizer()
    encoded = zoo.encode(tokenizer, "{text} {soft:2}", text=["w5 w6 w7", "w8"])
    plain = tokenizer(["w5 w6 w7 w60 w61", "w8 w60 w61"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert_equal(model(**encoded).logits, base(**plain).logits, "logits")


def test_more_slots_than_virtual_tokens():
    model = attach(tiny_model("llama"), [60, 61])
    with pytest.raises(ValueError, match="row 0 of soft_slots uses virtual token 2, but its prompts have 2 at"):
        model(**encode("{soft:3} w5"))


@pytest.mark.parametrize(
    "slot",
    [
        *("{soft:0}", "{soft:-3}", "{soft:}", "{soft}", "{soft:x}", "{soft:1.5}", "{soft: 3}", "{soft:3!r}"),
        *("{soft[]}", "{soft[-1]}", "{soft[a]}", "{soft[3:3]}", "{soft[3:1]}", "{soft[:3]}", "{soft[1]:3}"),
        *("{soft.x}", "{soft!r:3}", "{soft[0][1]}"),
    ],
)
def test_malformed_slots(slot):
    with pytest.raises(ValueError, match=r"the slot \{soft.* names no virtual token; expected \{soft:10\}"):
        encode(f"w5 {slot} w6")


@pytest.mark.parametrize("template", ["{}", "{0}", "{a.b}", "{a[0]}", "{text!r}", "{text:>10}", "{a b}"])
def test_malformed_fields(template):
    with pytest.raises(ValueError, match="expected the name of a field, as in"):
        encode(template, text="w5")


@pytest.mark.parametrize("template", ["{soft:3", "w5 }", "{", "{soft[0:3}"])
def test_braces_that_do_not_close(template):
    with pytest.raises(ValueError, match=r"write \{\{ and \}\} for literal braces"):
        encode(template)


@pytest.mark.parametrize("option", ["padding", "max_length"])
def test_a_field_named_like_an_option_is_refused(option):
    for value in ("w5", None):
        with pytest.raises(
            ValueError, match=rf"has the field \{{{option}\}}, which cannot be filled: {option}=… is an"
        ):
            zoo.encode(tiny_tokenizer(), f"{{soft:1}} {{{option}}}", **{option: value} if value else {})


@pytest.mark.parametrize(
    ("template", "options", "error", "text"),
    [
        ("{text}", {}, ValueError, r"the template has \{text\}, which is missing; pass text=…"),
        ("{text}", {"text": "w5", "txt": "w5"}, ValueError, r"unknown field 'txt'; the template has \{text\}"),
        ("w5", {"text": "w5"}, ValueError, "unknown field 'text'; the template has no field"),
        ("{a}{b}", {"a": ["w5"], "b": ["w5", "w6"]}, ValueError, "different numbers of rows: a has 1, b has 2"),
        ("{a}{b}", {"a": [], "b": "w5"}, ValueError, "field 'a' is empty; give at least one text"),
        ("{text}", {"text": 5}, TypeError, r"field 'text' is 5 \(int\); expected a text, or an iterable of texts"),
        ("{text}", {"text": {"text": ["w5"]}}, TypeError, "field 'text' is a mapping with the keys 'text'"),
        ("{text}", {"text": None}, TypeError, r"field 'text' is None \(NoneType\)"),
        ("{text}", {"text": ["w5", None]}, TypeError, r"field 'text' has None \(NoneType\) in row 1; expected a text"),
        ("{text}", {"text": ["w5", ""]}, ValueError, "row 1 has no tokens"),
        ("", {}, ValueError, "row 0 has no tokens"),
        (5, {}, TypeError, "template is 5; expected a text, or a list of messages"),
        ([], {}, TypeError, r"template is \[\]; expected a text, or a list of messages"),
        ([{"role": "user"}], {}, TypeError, "message 0 of the template is .* expected a role and a content"),
        (["w5"], {}, TypeError, "message 0 of the template is 'w5'"),
        ([{"role": "user", "content": "w5"}], {}, ValueError, "the tokenizer has no chat template"),
        ("w5", {"max_length": 0}, ValueError, "max_length is 0; expected an integer of at least 1"),
        ("w5", {"max_length": "9"}, TypeError, "max_length is '9'"),
        ("w5", {"padding": True}, ValueError, "padding is True; expected one of 'longest', 'max_length'"),
        ("w5", {"padding": "max_length"}, ValueError, "padding='max_length' needs max_length"),
        (
            "{soft:4} w5 {text} w6",
            {"text": "w7", "max_length": 5},
            ValueError,
            "max_length is 5, but the template alone has 4 slots and 2 other tokens, which are never cut",
        ),
        ("{soft:4}", {"max_length": 3}, ValueError, "max_length is 3, but the template alone has 4 slots"),
    ],
)
def test_mistakes(template, options, error, text):
    with pytest.raises(error, match=text):
        encode(template, **options)


def test_a_tokenizer_that_is_none():
    with pytest.raises(TypeError, match="tokenizer is NoneType; expected a transformers tokenizer"):
        zoo.encode(None, "w5")


def test_a_tokenizer_without_padding():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert rows(zoo.encode(tokenizer, "{soft:1} {text}", text=["w5", "w6"])) == [["s0", 5], ["s0", 6]]
    with pytest.raises(ValueError, match=r"the tokenizer has no pad token; set tokenizer\.pad_token = "):
        zoo.encode(tokenizer, "{soft:1} {text}", text=["w5", "w6 w7"])


def test_a_tokenizer_that_hides_its_special_tokens():
    class Strange(type(tiny_tokenizer())):
        def __call__(self, text, add_special_tokens=True, **options):
            return {"input_ids": [7, 8] if add_special_tokens else [5]}

    tokenizer = tiny_tokenizer()
    tokenizer.__class__ = Strange
    with pytest.raises(ValueError, match=r"the tokenizer makes \[7, 8\] of 'a' with special tokens and \[5\] without"):
        zoo.encode(tokenizer, "w5")
